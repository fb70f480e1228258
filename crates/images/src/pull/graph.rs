//! Which manifests of an image are wanted.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};
use gantry_core::Descriptor;
use gantry_core::image::{Document, INDEX_DEPTH_MAX, Index, Manifest};
use gantry_core::platforms::Matcher;
use gantry_errdefs::{Error, Result};

use super::fetch::Fetcher;
use crate::content;

/// How many entries all indexes of an image may have together, and layers a manifest: far above
/// any real image, small enough to hold in memory.
pub(super) const ENTRIES_MAX: usize = 4096;

/// What is wanted of an image.
pub(super) struct Selection {
    /// The platforms.
    pub(super) matcher: Matcher,
    /// How many manifests of an index at most, best first; 0 for no bound.
    pub(super) manifest_limit: usize,
    /// Fetch manifests and configs of other platforms too.
    pub(super) all_metadata: bool,
}

/// A manifest that is in the store.
pub(super) struct Found {
    pub(super) descriptor: Descriptor,
    pub(super) manifest: Manifest,
    /// Names of the documents above it, the nearest last.
    pub(super) parents: Vec<String>,
    /// Whether its layers are wanted, not just its metadata.
    pub(super) layers: bool,
}

/// Fetches the documents of the image `top` and returns the manifests that are wanted. `whole` is
/// what they are reported as parts of.
///
/// # Errors
/// NotFound when there is none for the platforms; InvalidArgument for malformed documents.
pub(super) async fn walk(
    fetcher: &Fetcher,
    selection: &Selection,
    top: &Descriptor,
    whole: Vec<String>,
    known: Option<Bytes>,
) -> Result<Vec<Found>> {
    let walker = Walker { fetcher, selection, parts: AtomicBool::new(false) };
    let found = walker.descend(top.clone(), whole, known, true, 0).await?;
    if !found.iter().any(|f| f.layers) && !walker.parts.load(Ordering::Relaxed) {
        return Err(Error::not_found(format!(
            "image {}: no match for platform in manifest: want {}",
            top.digest, selection.matcher
        )));
    }
    Ok(found)
}

struct Walker<'a> {
    fetcher: &'a Fetcher,
    selection: &'a Selection,
    /// Whether there was anything that is no image.
    parts: AtomicBool,
}

impl Walker<'_> {
    fn descend(
        &self,
        descriptor: Descriptor,
        parents: Vec<String>,
        known: Option<Bytes>,
        layers: bool,
        depth: usize,
    ) -> BoxFuture<'_, Result<Vec<Found>>> {
        async move {
            if depth > INDEX_DEPTH_MAX {
                return Err(Error::invalid_argument(format!(
                    "index {}: nested more than {INDEX_DEPTH_MAX} deep",
                    descriptor.digest
                )));
            }
            let document = self.fetcher.document(&descriptor, &parents, known).await?;
            let entries = document.children().len();
            if entries > ENTRIES_MAX {
                return Err(Error::invalid_argument(format!(
                    "manifest {}: {entries} entries, more than {ENTRIES_MAX}",
                    descriptor.digest
                )));
            }
            match document {
                Document::Manifest(manifest) => {
                    Ok(vec![Found { descriptor, manifest: *manifest, parents, layers }])
                }
                Document::Index(index) => {
                    let mut below = parents;
                    below.push(content::ref_key(&descriptor));
                    let parts = index.parts().map(|part| self.part(part, &below));
                    let parts = try_join_all(parts);
                    let each = self.choose(&index, layers).into_iter().map(|(child, layers)| {
                        self.descend(child, below.clone(), None, layers, depth + 1)
                    });
                    let (found, _) = tokio::try_join!(try_join_all(each), parts)?;
                    Ok(found.into_iter().flatten().collect())
                }
            }
        }
        .boxed()
    }

    /// Fetches an entry of an index that is no image, such as a part of a checkpoint.
    async fn part(&self, part: &Descriptor, parents: &[String]) -> Result<()> {
        self.parts.store(true, Ordering::Relaxed);
        self.fetcher.blob(part, parents, None).await
    }

    /// The images of an index that are wanted, best first, with whether their layers are.
    fn choose(&self, index: &Index, layers: bool) -> Vec<(Descriptor, bool)> {
        let mut matching: Vec<&Descriptor> = Vec::new();
        if layers {
            let ranked = index.ranked(&self.selection.matcher);
            matching.extend(ranked.into_iter().map(|(_, entry)| entry));
        }
        if self.selection.manifest_limit > 0 {
            matching.truncate(self.selection.manifest_limit);
        }
        let mut wanted: Vec<_> = matching.iter().map(|entry| ((*entry).clone(), true)).collect();
        if self.selection.all_metadata {
            let is_other = |d: &&Descriptor| d.is_document() && !matching.contains(d);
            let others = index.manifests.iter().filter(is_other);
            wanted.extend(others.map(|entry| (entry.clone(), false)));
        }
        wanted
    }
}
