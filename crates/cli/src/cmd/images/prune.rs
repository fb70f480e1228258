//! `images prune`.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use clap::Args;
use gantry_client::{Client, ImageRecord};
use gantry_core::Digest;
use gantry_core::platforms::Matcher;
use gantry_errdefs::{Error, Result};

use super::tree::Tree;
use crate::cli::parse_duration;
use crate::output;
use crate::session::Session;

/// Label by which the kubelet's images are pinned, and its value.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

#[derive(Debug, Default, Args)]
pub(crate) struct Flags {
    /// Choose all images that nothing uses
    #[arg(long, short = 'a')]
    all: bool,
    /// Choose images not changed for this long, such as 72h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    until: Option<Duration>,
    /// Choose images with this label, key or key=value
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Choose images whose content is larger than this, such as 500M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    larger_than: Option<i64>,
    /// Of each repository keep the newest images
    #[arg(long, value_name = "COUNT")]
    keep: Option<usize>,
    /// Print what would be removed, and change nothing
    #[arg(long, visible_alias = "dry")]
    dry_run: bool,
    /// Leave the collection of their content to the daemon
    #[arg(long = "async")]
    asynchronous: bool,
}

/// What must stay.
#[derive(Default)]
struct Used {
    /// Images that containers were made from, or leases hold, by name.
    names: HashSet<String>,
    /// Targets that leases hold.
    digests: HashSet<String>,
}

impl Flags {
    pub(super) async fn execute(self, session: &Session) -> Result<()> {
        let client = &session.client;
        if !self.all && !self.chooses() {
            return Err(Error::invalid_argument(
                "images prune: nothing chosen; give --all, --until, --label, --larger-than or --keep",
            ));
        }
        let images = client.images().list(&[]).await?;
        let used = Used::of(client).await?;
        let mut chosen = self.choose(&images, &used, SystemTime::now());
        if let Some(least) = self.larger_than {
            let mut large = Vec::new();
            for image in chosen {
                let tree = Tree::read(client, &image.target, &Matcher::host()).await?;
                if tree.available() > least {
                    large.push(image);
                }
            }
            chosen = large;
        }
        let last = chosen.len().saturating_sub(1);
        for (n, image) in chosen.into_iter().enumerate() {
            if !self.dry_run {
                // One collection, after the last, collects for all.
                let sync = n == last && !self.asynchronous;
                match client.images().delete(&image.name, sync).await {
                    // Someone else was quicker.
                    Err(e) if e.is_not_found() => continue,
                    other => other?,
                }
            }
            output::line(&image.name);
        }
        Ok(())
    }

    /// Whether a flag other than `--all` chooses.
    fn chooses(&self) -> bool {
        self.until.is_some()
            || !self.labels.is_empty()
            || self.larger_than.is_some()
            || self.keep.is_some()
    }

    /// The images that every flag but the size chooses and nothing uses, by name.
    fn choose<'a>(
        &self,
        images: &'a [ImageRecord],
        used: &Used,
        now: SystemTime,
    ) -> Vec<&'a ImageRecord> {
        let newest = self.keep.map(|count| newest(images, count)).unwrap_or_default();
        let mut chosen: Vec<_> = images
            .iter()
            .filter(|image| !used.holds(image) && !newest.contains(image.name.as_str()))
            .filter(|image| self.labels.iter().all(|label| has_label(image, label)))
            .filter(|image| {
                // A time to come has no age.
                let age = now.duration_since(image.updated_at).unwrap_or_default();
                self.until.is_none_or(|until| age >= until)
            })
            .collect();
        chosen.sort_by(|a, b| a.name.cmp(&b.name));
        chosen
    }
}

impl Used {
    async fn of(client: &Client) -> Result<Self> {
        let mut used = Self::default();
        for container in client.containers().list(&[]).await? {
            used.names.insert(container.image);
        }
        for lease in client.leases().list(&[]).await? {
            let resources = match client.leases().resources(&lease.id).await {
                Err(e) if e.is_not_found() => continue,
                other => other?,
            };
            for (kind, resource) in resources {
                match kind.as_str() {
                    "images" => drop(used.names.insert(resource)),
                    "content" => drop(used.digests.insert(resource)),
                    _ => {}
                }
            }
        }
        Ok(used)
    }

    fn holds(&self, image: &ImageRecord) -> bool {
        let digest: &Digest = &image.target.digest;
        self.names.contains(&image.name)
            || self.digests.contains(digest.as_str())
            || image.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1)
    }
}

/// Names of the `count` newest images of each repository.
fn newest(images: &[ImageRecord], count: usize) -> HashSet<&str> {
    let mut repositories: HashMap<&str, Vec<&ImageRecord>> = HashMap::new();
    for image in images {
        repositories.entry(repository(&image.name)).or_default().push(image);
    }
    repositories
        .into_values()
        .flat_map(|mut images| {
            images.sort_by(|a, b| b.updated_at.cmp(&a.updated_at).then(a.name.cmp(&b.name)));
            images.truncate(count);
            images.into_iter().map(|image| image.name.as_str())
        })
        .collect()
}

/// A reference without its tag and digest.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        // A colon before the last slash belongs to the host's port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

fn has_label(image: &ImageRecord, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => image.labels.get(key).is_some_and(|has| has == value),
        None => image.labels.contains_key(wanted),
    }
}

/// A size in bytes: `500M`, `2GiB`, `1048576`. Units are powers of 1024.
fn parse_size(text: &str) -> std::result::Result<i64, String> {
    let bad = || format!("{text:?} is no size such as 500M or 2GiB");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: i64 = text[..end].parse().map_err(|_| bad())?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(bad()),
    };
    count.checked_mul(1024_i64.pow(power)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use gantry_core::{Descriptor, Labels, media_types};

    use super::*;

    fn image(name: &str, hours_old: u64, label: Option<(&str, &str)>) -> ImageRecord {
        let digest = Digest::of(name.as_bytes());
        let mut image =
            ImageRecord::new(name, Descriptor::new(media_types::OCI_MANIFEST, digest, 1));
        image.updated_at = now() - Duration::from_secs(hours_old * 3600);
        image.labels =
            label.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect::<Labels>();
        image
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn chosen(flags: &Flags, images: &[ImageRecord], used: &Used) -> Vec<String> {
        flags.choose(images, used, now()).into_iter().map(|i| i.name.clone()).collect()
    }

    #[test]
    fn what_is_used_is_never_chosen() {
        let images = [
            image("r/container:1", 9, None),
            image("r/free:1", 9, None),
            image("r/leased:1", 9, None),
            image("r/pinned:1", 9, Some(PINNED)),
        ];
        let used = Used {
            names: HashSet::from(["r/container:1".to_owned()]),
            digests: HashSet::from([images[2].target.digest.to_string()]),
        };
        let flags = Flags { all: true, ..Flags::default() };
        assert_eq!(chosen(&flags, &images, &used), ["r/free:1"]);
    }

    #[test]
    fn every_flag_narrows() {
        let images = [
            image("h:5000/a:1", 9, Some(("team", "x"))),
            image("h:5000/a:2", 5, Some(("team", "y"))),
            image("h:5000/a:3", 1, None),
            image("h:5000/b@sha256:00", 9, None),
        ];
        let none = Used::default();
        let keep = Flags { keep: Some(1), ..Flags::default() };
        assert_eq!(chosen(&keep, &images, &none), ["h:5000/a:1", "h:5000/a:2"]);
        let hours = |h: u64| Some(Duration::from_secs(h * 3600));
        let until = Flags { until: hours(5), ..Flags::default() };
        assert_eq!(
            chosen(&until, &images, &none),
            ["h:5000/a:1", "h:5000/a:2", "h:5000/b@sha256:00"]
        );
        let label = Flags { labels: vec!["team=y".to_owned()], ..Flags::default() };
        assert_eq!(chosen(&label, &images, &none), ["h:5000/a:2"]);
        let both = Flags { labels: vec!["team".to_owned()], until: hours(6), ..Flags::default() };
        assert_eq!(chosen(&both, &images, &none), ["h:5000/a:1"]);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("10"), Ok(10));
        assert_eq!(parse_size("2k"), Ok(2048));
        assert_eq!(parse_size("3 MiB"), Ok(3 << 20));
        assert_eq!(parse_size("1GB"), Ok(1 << 30));
        for bad in ["", "k", "-1", "1x", "9999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
