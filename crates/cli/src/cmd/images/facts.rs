//! What lists show of many images' content: sizes and platforms.
//!
//! The documents of many images are read level by level, each level in one call where the daemon
//! can do that: a list of a thousand images takes dozens of calls instead of thousands.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use gantry_client::{Client, ImageRecord};
use gantry_core::image::{Document, INDEX_DEPTH_MAX, ImageConfig};
use gantry_core::platforms::{self, Matcher};
use gantry_core::{Descriptor, Digest, Platform};
use gantry_errdefs::Result;

/// Documents asked for at once where each takes a call of its own: enough to keep the daemon busy
/// while answers are on their way.
const LOOKUPS_MAX: usize = 32;

/// Images whose documents are asked for in one call: few enough that the next ones are read while
/// these are parsed.
const IMAGES_AT_ONCE: usize = 128;

/// Such calls under way: as many as keep daemon and client busy.
const CALLS_MAX: usize = 4;

/// What the columns show of an image's content.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Bytes that the image takes for this machine's platform.
    pub(super) size: i64,
    /// The platforms it is for.
    pub(super) platforms: Vec<String>,
}

/// One image on its way down to its manifest.
struct Walk {
    top: Digest,
    at: Option<Descriptor>,
    config: Option<Digest>,
    facts: Facts,
}

/// The facts of every target; names that share one share the look-up.
pub(super) async fn of(client: &Client, images: &[ImageRecord]) -> Result<HashMap<Digest, Facts>> {
    let targets: HashMap<&Digest, &Descriptor> =
        images.iter().map(|image| (&image.target.digest, &image.target)).collect();
    let start = |target: &Descriptor| Walk {
        top: target.digest.clone(),
        at: Some(target.clone()),
        config: None,
        facts: Facts::default(),
    };
    let targets: Vec<&Descriptor> = targets.into_values().collect();
    let each = targets.chunks(IMAGES_AT_ONCE).map(|some| {
        let walks = some.iter().map(|target| start(target)).collect();
        of_some(client, walks)
    });
    let each: Vec<_> = each.collect();
    stream::iter(each)
        .buffer_unordered(CALLS_MAX)
        .try_fold(HashMap::with_capacity(targets.len()), |mut all, some| async move {
            all.extend(some);
            Ok(all)
        })
        .await
}

async fn of_some(client: &Client, mut walks: Vec<Walk>) -> Result<Vec<(Digest, Facts)>> {
    let matcher = Matcher::host();
    for _ in 0..INDEX_DEPTH_MAX {
        let wanted: Vec<Digest> =
            walks.iter().filter_map(|walk| Some(walk.at.as_ref()?.digest.clone())).collect();
        if wanted.is_empty() {
            break;
        }
        let read = documents(client, wanted).await?;
        walks.iter_mut().for_each(|walk| walk.step(&read, &matcher));
    }
    let wanted = walks.iter().filter_map(|walk| walk.config.clone()).collect();
    let configs = documents(client, wanted).await?;
    Ok(walks.into_iter().map(|walk| (walk.top.clone(), walk.finish(&configs))).collect())
}

impl Walk {
    /// Goes one document down.
    fn step(&mut self, read: &HashMap<Digest, Bytes>, matcher: &Matcher) {
        let Some(at) = self.at.take() else { return };
        self.facts.size += at.size;
        let Some(bytes) = read.get(&at.digest) else { return };
        match Document::parse(&at, bytes) {
            Ok(Document::Index(index)) => {
                if self.facts.platforms.is_empty() {
                    let named = index.manifests.iter().filter_map(|d| d.platform.as_ref());
                    self.facts.platforms = named.map(shown).collect();
                    self.facts.platforms.sort();
                    self.facts.platforms.dedup();
                }
                self.at = index.ranked(matcher).first().map(|(_, entry)| (*entry).clone());
            }
            Ok(document @ Document::Manifest(_)) => {
                self.facts.size += document.children().iter().map(|(_, d)| d.size).sum::<i64>();
                // An index says its platforms; a manifest alone has its own in its config.
                if let Document::Manifest(manifest) = document
                    && self.facts.platforms.is_empty()
                {
                    self.config = Some(manifest.config.digest);
                }
            }
            // What nobody can read has the size of itself.
            Err(_) => {}
        }
    }

    fn finish(mut self, configs: &HashMap<Digest, Bytes>) -> Facts {
        if let Some(digest) = self.config
            && let Some(bytes) = configs.get(&digest)
            && let Ok(config) = ImageConfig::parse(&digest, bytes)
        {
            self.facts.platforms.push(shown(&config.platform.into()));
        }
        self.facts
    }
}

fn shown(platform: &Platform) -> String {
    platforms::format(&platforms::normalize(platform))
}

/// The bytes of documents; those that are not there are left out.
async fn documents(client: &Client, wanted: Vec<Digest>) -> Result<HashMap<Digest, Bytes>> {
    let content = client.content();
    let mut found = content.read_documents(&wanted).await?;
    let rest: Vec<Digest> = wanted.into_iter().filter(|d| !found.contains_key(d)).collect();
    let mut reads = stream::iter(rest)
        .map(|digest| {
            let content = content.clone();
            async move { (content.read(&digest).await, digest) }
        })
        .buffer_unordered(LOOKUPS_MAX);
    while let Some((read, digest)) = reads.next().await {
        match read {
            Ok(bytes) => drop(found.insert(digest, bytes)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}
