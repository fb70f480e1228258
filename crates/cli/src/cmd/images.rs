//! `images`.

use std::path::PathBuf;

use clap::Subcommand;
use gantry_client::{Client, ImageRecord, LeaseOptions};
use gantry_core::image::Document;
use gantry_core::platforms::{self, Matcher};
use gantry_core::{Descriptor, Labels, Platform, media_types};
use gantry_errdefs::{Error, Result};

use crate::cmd::transfer::{ExportFlags, ImportFlags, PullFlags, PushFlags, parse_platform};
use crate::labels;
use crate::output::{self, Cell, Table};
use crate::rootfs;
use crate::session::Session;

/// How long the snapshot of a mounted image is kept if nobody unmounts it.
const MOUNT_LIFETIME: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that the content of images is there
    Check {
        /// Print complete images only, names alone
        #[arg(long, short)]
        quiet: bool,
        /// Snapshotter to look into
        #[arg(
            long,
            value_name = "NAME",
            env = "CONTAINERD_SNAPSHOTTER",
            default_value = "overlayfs"
        )]
        snapshotter: String,
        /// Filters
        filters: Vec<String>,
    },
    /// Write images to an archive
    Export(ExportFlags),
    /// Read images from an archive
    Import(ImportFlags),
    /// List images
    #[command(visible_alias = "ls")]
    List {
        /// Print names only
        #[arg(long, short)]
        quiet: bool,
        /// Filters
        filters: Vec<String>,
    },
    /// Set and clear labels
    Label {
        /// Replace all labels
        #[arg(long, short)]
        replace_all: bool,
        /// Image
        image: String,
        /// Labels, key=value; an empty value clears
        labels: Vec<String>,
    },
    /// Mount an image
    Mount {
        /// Snapshotter
        #[arg(
            long,
            value_name = "NAME",
            env = "CONTAINERD_SNAPSHOTTER",
            default_value = "overlayfs"
        )]
        snapshotter: String,
        /// Mount writable
        #[arg(long)]
        rw: bool,
        /// Platform
        #[arg(long, value_name = "PLATFORM", value_parser = parse_platform)]
        platform: Option<Platform>,
        /// Image
        image: String,
        /// Directory
        target: PathBuf,
    },
    /// Unmount an image
    Unmount {
        /// Snapshotter
        #[arg(
            long,
            value_name = "NAME",
            env = "CONTAINERD_SNAPSHOTTER",
            default_value = "overlayfs"
        )]
        snapshotter: String,
        /// Remove its snapshot
        #[arg(long)]
        rm: bool,
        /// Directory
        target: PathBuf,
    },
    /// Pull an image from a registry
    Pull(Box<PullFlags>),
    /// Push an image to a registry
    Push(Box<PushFlags>),
    /// Remove images
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Return after their content is collected
        #[arg(long)]
        sync: bool,
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Give an image more names
    Tag {
        /// Replace names that exist
        #[arg(long)]
        force: bool,
        /// Image
        image: String,
        /// New names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Show the disk space of an image's snapshots
    Usage {
        /// Snapshotter
        #[arg(
            long,
            value_name = "NAME",
            env = "CONTAINERD_SNAPSHOTTER",
            default_value = "overlayfs"
        )]
        snapshotter: String,
        /// Image
        image: String,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let client = &session.client;
        match self {
            Self::Check { quiet, snapshotter, filters } => {
                check(session, quiet, &snapshotter, &filters).await?;
            }
            Self::Export(flags) => return flags.execute(session).await,
            Self::Import(flags) => return flags.execute(session).await,
            Self::List { quiet, filters } => list(session, quiet, &filters).await?,
            Self::Label { replace_all, image, labels } => {
                let labels = labels::parse(&labels);
                let record = if replace_all {
                    let mut record = client.images().get(&image).await?;
                    record.labels = labels;
                    client.images().update(&record, &["labels".to_owned()]).await?
                } else {
                    client.images().set_labels(&image, &labels).await?
                };
                output::line(output::label_list(&record.labels));
            }
            Self::Mount { snapshotter, rw, platform, image, target } => {
                mount(client, &snapshotter, rw, platform.as_ref(), &image, &target).await?;
                output::line(target.display().to_string());
            }
            Self::Unmount { snapshotter, rm, target } => {
                rootfs::unmount(&target).await?;
                if rm {
                    let key = target.display().to_string();
                    match client.snapshots(snapshotter).remove(&key).await {
                        Err(e) if !e.is_not_found() => return Err(e),
                        _ => {}
                    }
                }
                output::line(target.display().to_string());
            }
            Self::Pull(flags) => return flags.pull(session).await,
            Self::Push(flags) => return flags.execute(session).await,
            Self::Delete { sync, images } => return delete(session, sync, &images).await,
            Self::Tag { force, image, names } => tag(client, force, &image, &names).await?,
            Self::Usage { snapshotter, image } => usage(session, &snapshotter, &image).await?,
        }
        Ok(0)
    }
}

async fn list(session: &Session, quiet: bool, filters: &[String]) -> Result<()> {
    let mut images = session.client.images().list(filters).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    if quiet {
        images.iter().for_each(|i| output::line(&i.name));
        return Ok(());
    }
    let mut table = Table::narrow(&["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]);
    for image in images {
        let tree = Tree::read(&session.client, &image.target, &Matcher::host()).await?;
        let platforms = platforms_of(&session.client, &image, &tree).await;
        let shown = if platforms.is_empty() { "-".to_owned() } else { platforms.join(",") };
        table.row([
            image.name.into(),
            image.target.media_type.into(),
            image.target.digest.as_str().into(),
            output::size_cell(tree.required()),
            Cell::new(shown, platforms),
            output::labels_cell(&image.labels),
        ]);
    }
    table.print(session.format);
    Ok(())
}

async fn check(
    session: &Session,
    quiet: bool,
    snapshotter: &str,
    filters: &[String],
) -> Result<()> {
    let client = &session.client;
    let mut table = Table::narrow(&["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"]);
    let mut images = client.images().list(filters).await?;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    for image in images {
        let tree = Tree::read(client, &image.target, &Matcher::host()).await?;
        // As ctr counts: what the manifest names, without the manifest itself.
        let parts = |blobs: &[Descriptor]| {
            blobs
                .iter()
                .filter(|b| {
                    let t = &b.media_type;
                    !media_types::is_index(t) && !media_types::is_manifest(t)
                })
                .count()
        };
        let have = parts(&tree.present);
        let all = have + parts(&tree.missing);
        let status = match (tree.readable, tree.missing.is_empty()) {
            (false, _) => "unavailable (0/?)".to_owned(),
            (true, true) => format!("complete ({have}/{all})"),
            (true, false) => format!("incomplete ({have}/{all})"),
        };
        let complete = tree.readable && tree.missing.is_empty();
        let unpacked = match client.resolve_image(&image.name, None).await {
            Ok(resolved) => client.is_unpacked(&resolved, snapshotter).await?,
            Err(_) => false,
        };
        if quiet {
            if complete {
                output::line(&image.name);
            }
            continue;
        }
        let size = if tree.readable {
            format!("{}/{}", output::bytes(tree.available()), output::bytes(tree.required()))
        } else {
            "-".to_owned()
        };
        table.row([
            image.name.into(),
            image.target.media_type.into(),
            image.target.digest.as_str().into(),
            status.into(),
            size.into(),
            Cell::new(unpacked.to_string(), unpacked),
        ]);
    }
    if !quiet {
        table.print(session.format);
    }
    Ok(())
}

/// What an image needs for one platform, and whether it is there.
struct Tree {
    present: Vec<Descriptor>,
    missing: Vec<Descriptor>,
    /// Whether a manifest was reached.
    readable: bool,
    /// The entries of the index, when the top is one.
    entries: Vec<Descriptor>,
}

impl Tree {
    async fn read(client: &Client, target: &Descriptor, matcher: &Matcher) -> Result<Self> {
        let mut tree =
            Self { present: Vec::new(), missing: Vec::new(), readable: false, entries: Vec::new() };
        let mut next = Some(target.clone());
        while let Some(current) = next.take() {
            let bytes = match client.content().read(&current.digest).await {
                Ok(bytes) => bytes,
                Err(e) if e.is_not_found() => {
                    tree.missing.push(current);
                    break;
                }
                Err(e) => return Err(e),
            };
            let document = Document::parse(&current, &bytes);
            tree.present.push(current);
            match document {
                Ok(Document::Index(index)) => {
                    if tree.entries.is_empty() {
                        tree.entries.clone_from(&index.manifests);
                    }
                    next = best(index.manifests, matcher);
                }
                Ok(document @ Document::Manifest(_)) => {
                    tree.readable = true;
                    for (_, child) in document.children() {
                        match client.content().info(&child.digest).await {
                            Ok(_) => tree.present.push(child.clone()),
                            Err(e) if e.is_not_found() => tree.missing.push(child.clone()),
                            Err(e) => return Err(e),
                        }
                    }
                }
                Err(_) => break,
            }
        }
        Ok(tree)
    }

    fn available(&self) -> i64 {
        self.present.iter().map(|d| d.size).sum()
    }

    fn required(&self) -> i64 {
        self.available() + self.missing.iter().map(|d| d.size).sum::<i64>()
    }
}

/// The entry of an index that fits best.
fn best(entries: Vec<Descriptor>, matcher: &Matcher) -> Option<Descriptor> {
    entries
        .into_iter()
        .filter(|d| media_types::is_manifest(&d.media_type) || media_types::is_index(&d.media_type))
        .filter_map(|d| {
            let rank = d.platform.as_ref().map_or(Some(usize::MAX), |p| matcher.rank(p))?;
            Some((rank, d))
        })
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, d)| d)
}

async fn platforms_of(client: &Client, image: &ImageRecord, tree: &Tree) -> Vec<String> {
    if media_types::is_index(&image.target.media_type) {
        let mut names: Vec<String> = tree
            .entries
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(|p| platforms::format(&platforms::normalize(p)))
            .collect();
        names.sort();
        names.dedup();
        if !names.is_empty() {
            return names;
        }
    }
    // A single manifest says its platform in its config.
    let resolved = client.resolve_target(&image.name, &image.target, &Matcher::all()).await;
    resolved.map_or_else(
        |_| Vec::new(),
        |r| vec![platforms::format(&platforms::normalize(&r.config.platform.into()))],
    )
}

async fn delete(session: &Session, sync: bool, images: &[String]) -> Result<u8> {
    let mut code = 0;
    let last = images.len() - 1;
    for (n, name) in images.iter().enumerate() {
        // One collection, after the last, collects for all.
        match session.client.images().delete(name, sync && n == last).await {
            Ok(()) => output::line(name),
            // As ctr: asking for what is gone already is no failure.
            Err(e) if e.is_not_found() => {
                output::error(&session.program, &format!("{name}: image not found"));
            }
            Err(e) => {
                output::error(&session.program, &e.context(format!("image {name:?}")).text());
                code = 1;
            }
        }
    }
    Ok(code)
}

async fn tag(client: &Client, force: bool, image: &str, names: &[String]) -> Result<()> {
    let source = client.images().get(image).await?;
    for name in names {
        let record = ImageRecord { name: name.clone(), ..source.clone() };
        if force {
            match client.images().delete(name, false).await {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        client.images().create(&record).await?;
        output::line(name);
    }
    Ok(())
}

async fn usage(session: &Session, snapshotter: &str, name: &str) -> Result<()> {
    let image = session.client.resolve_image(name, None).await?;
    let snapshots = session.client.snapshots(snapshotter);
    let mut table = Table::narrow(&["KEY", "SIZE", "INODES"]);
    for chain in image.chain_ids() {
        let usage = snapshots.usage(chain.as_str()).await?;
        let inodes = Cell::new(usage.inodes.to_string(), usage.inodes);
        table.row([chain.as_str().into(), output::size_cell(usage.size), inodes]);
    }
    table.print(session.format);
    Ok(())
}

async fn mount(
    client: &Client,
    snapshotter: &str,
    rw: bool,
    platform: Option<&Platform>,
    image: &str,
    target: &std::path::Path,
) -> Result<()> {
    let resolved = client.resolve_image(image, platform).await?;
    let unpack = gantry_client::UnpackOptions { snapshotter: snapshotter.to_owned() };
    client.unpack(&resolved, &unpack).await?;
    let key = target.display().to_string();
    // The mount holds nothing by itself: the lease does, until it is unmounted or a day is over.
    let options = LeaseOptions { expires: Some(MOUNT_LIFETIME), ..LeaseOptions::default() };
    let lease = client.leases().create(options).await?;
    let snapshots = client.under_lease(&lease.id).snapshots(snapshotter);
    let parent = resolved.chain_id().to_string();
    let prepared = if rw {
        snapshots.prepare(&key, &parent, Labels::new()).await
    } else {
        snapshots.view(&key, &parent, Labels::new()).await
    };
    let mounted = match prepared {
        // Mounted before and unmounted without --rm.
        Err(e) if e.is_already_exists() => snapshots.mounts(&key).await,
        other => other,
    };
    let done = match mounted {
        Ok(mounts) => rootfs::mount(&mounts, target).await.map_err(|e| (true, e)),
        Err(e) => Err((false, e)),
    };
    match done {
        Ok(()) => Ok(()),
        Err((made, e)) => {
            if made {
                let _ = snapshots.remove(&key).await;
            }
            let _ = client.leases().delete(&lease.id, false).await;
            Err(Error::context(e, format!("mounting {image:?}")))
        }
    }
}
