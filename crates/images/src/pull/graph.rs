//! Which manifests of an image are wanted.

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};
use gantry_core::Descriptor;
use gantry_core::image::{Document, Manifest};
use gantry_core::platforms::Matcher;
use gantry_errdefs::{Error, Result};

use super::fetch::Fetcher;
use crate::content;

/// How deep indexes may be nested. Real images have one; the bound is for hostile ones.
const INDEX_DEPTH_MAX: usize = 8;

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
    let walker = Walker { fetcher, selection };
    let found = walker.descend(top.clone(), whole, known, true, 0).await?;
    if !found.iter().any(|f| f.layers) {
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
                    let wanted = self.choose(index.manifests, layers);
                    let each = wanted.into_iter().map(|(child, layers)| {
                        self.descend(child, below.clone(), None, layers, depth + 1)
                    });
                    let found = try_join_all(each).await?;
                    Ok(found.into_iter().flatten().collect())
                }
            }
        }
        .boxed()
    }

    /// The entries of an index that are wanted, best first, with whether their layers are.
    fn choose(&self, entries: Vec<Descriptor>, layers: bool) -> Vec<(Descriptor, bool)> {
        let rank = |d: &Descriptor| match &d.platform {
            Some(platform) => self.selection.matcher.rank(platform),
            // Unknown until its config is read: after those that say they match.
            None => Some(usize::MAX),
        };
        let mut matching: Vec<(usize, Descriptor)> = Vec::new();
        let mut others = Vec::new();
        for entry in entries {
            match rank(&entry).filter(|_| layers) {
                Some(rank) => matching.push((rank, entry)),
                None => others.push(entry),
            }
        }
        matching.sort_by_key(|(rank, _)| *rank);
        if self.selection.manifest_limit > 0 && matching.len() > self.selection.manifest_limit {
            let rest = matching.split_off(self.selection.manifest_limit);
            others.extend(rest.into_iter().map(|(_, d)| d));
        }
        let matching = matching.into_iter().map(|(_, d)| (d, true));
        let others = others.into_iter().map(|d| (d, false));
        if self.selection.all_metadata {
            matching.chain(others).collect()
        } else {
            matching.collect()
        }
    }
}
