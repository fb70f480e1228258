//! Importing image archives: OCI layouts and docker's.
//!
//! An archive is read once, from a stream that may be compressed (`gantry-layout`). Its blobs go into
//! the content store as they come. The outcome is one index over all images of the archive; names come
//! from its annotations ([`store_images`]).

mod blobs;
mod docker;
mod names;
mod squeeze;

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use gantry_content::WriterOptions;
use gantry_core::image::{Document, Index};
use gantry_core::platforms::Matcher;
use gantry_core::{Context, Descriptor, media_types};
use gantry_errdefs::{Error, Result};
use gantry_layout::{Archived, Contents};
use gantry_metadata::Db;
use tokio::io::AsyncRead;

use crate::content::gc_labels;
use crate::read::{is_attestation, read_parsed};
use crate::unfinished::Unfinished;
use crate::unpack::unique;
use crate::{content, lease};

pub use names::{ImageNames, store_images};

use blobs::Ingests;

/// Manifests and indexes one archive may reach, so that indexes cannot refer to each other
/// without end.
const DOCUMENT_COUNT_MAX: usize = 10_000;

/// Documents labelled at once.
const LABELS_AT_ONCE: usize = 64;

/// How to import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The platforms whose content must be there; of others it may be missing.
    pub platforms: Matcher,
    /// Accept an archive that lacks content of those platforms as well.
    pub allow_missing: bool,
    /// Compress the layers that an archive of docker's holds as plain tars.
    pub compress: bool,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { platforms: Matcher::all(), allow_missing: false, compress: false }
    }
}

/// What an archive held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The index over all images, now in the content store.
    pub index: Descriptor,
    /// Its entries: each an image, or one of the images of a name.
    pub manifests: Vec<Descriptor>,
}

/// Imports the archive read from `reader` into the content store. The content is held by the
/// lease of `ctx`; without one it is collectable as soon as this returns, so a caller that goes on
/// to name images takes a lease first (see [`store_images`]).
///
/// # Errors
/// InvalidArgument for what is no image archive, or a damaged one: every blob must have the bytes
/// its name promises, every document be what it says, and everything named be there.
pub async fn import(
    db: &Db,
    ctx: &Context,
    reader: impl AsyncRead + Send + Unpin + 'static,
    options: &ImportOptions,
) -> Result<Imported> {
    let (ctx, own) = lease::ensure(db, ctx).await?;
    own.end(import_held(db, &ctx, reader, options).await).await
}

async fn import_held(
    db: &Db,
    ctx: &Context,
    reader: impl AsyncRead + Send + Unpin + 'static,
    options: &ImportOptions,
) -> Result<Imported> {
    let archived = gantry_layout::read(&Ingests::new(db, ctx), reader).await?;
    let index = index_of(db, ctx, &archived, options.compress).await?;
    label_tree(db, ctx, &index, options).await?;
    let bytes = content::read_document(&db.content(), ctx, &index).await?;
    let manifests = Index::parse(&index.digest, &bytes)?.manifests;
    if manifests.is_empty() {
        return Err(Error::invalid_argument("the archive names no image"));
    }
    db.sync().await?;
    Ok(Imported { index, manifests })
}

/// The index that the archive's documents describe, stored.
async fn index_of(
    db: &Db,
    ctx: &Context,
    archived: &Archived,
    compress: bool,
) -> Result<Descriptor> {
    match archived.contents()? {
        Contents::Layout(index) => store_document(db, ctx, media_types::OCI_INDEX, index).await,
        Contents::Docker(images) => {
            let index = docker::index(db, ctx, images, compress).await?;
            store_document(db, ctx, media_types::OCI_INDEX, &index).await
        }
    }
}

/// Stores a manifest or index, with labels that keep its children.
///
/// # Errors
/// InvalidArgument when it is not what `media_type` says.
async fn store_document(
    db: &Db,
    ctx: &Context,
    media_type: &str,
    bytes: &[u8],
) -> Result<Descriptor> {
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let target = Descriptor::new(media_type, gantry_core::Digest::of(bytes), size);
    let document = Document::parse(&target, bytes)?;
    let labels = gc_labels(&document);
    let total = bytes.len() as u64;
    let options = WriterOptions {
        reference: unique("document"),
        total,
        expected: Some(target.digest.clone()),
    };
    let stored = async {
        let (unfinished, mut writer) = Unfinished::open(db, ctx, options).await?;
        writer.write(bytes.to_vec().into()).await?;
        let commit = content::commit(writer, total, &target.digest, labels.clone());
        unfinished.end(commit).await
    };
    match stored.await {
        Err(err) if err.is_already_exists() => {
            content::add_labels(&db.content(), ctx, &target, labels, None).await?;
        }
        stored => drop(stored?),
    }
    Ok(target)
}

/// Checks every document the index reaches and labels it so that it keeps its children.
async fn label_tree(
    db: &Db,
    ctx: &Context,
    index: &Descriptor,
    options: &ImportOptions,
) -> Result<()> {
    let content = db.content();
    let mut seen = BTreeMap::new();
    let mut todo = vec![(index.clone(), true)];
    let mut labels = Vec::new();
    while let Some((target, needed)) = todo.pop() {
        if seen.insert(target.digest.clone(), ()).is_some() {
            continue;
        }
        if seen.len() > DOCUMENT_COUNT_MAX {
            return Err(Error::invalid_argument(format!(
                "the archive has over {DOCUMENT_COUNT_MAX} manifests"
            )));
        }
        let document = match read_parsed(&content, ctx, &target).await {
            Err(err) if err.is_not_found() && !needed => continue,
            Err(err) if err.is_not_found() => return Err(missing(&target)),
            document => document?,
        };
        labels.push((target, gc_labels(&document)));
        match document {
            Document::Index(index) => {
                for child in index.manifests {
                    if !media_types::is_index(&child.media_type)
                        && !media_types::is_manifest(&child.media_type)
                    {
                        // Something newer than we are; it is kept if it is there.
                        continue;
                    }
                    let wanted =
                        child.platform.as_ref().is_none_or(|p| options.platforms.matches(p));
                    let child_needed =
                        needed && wanted && !options.allow_missing && !is_attestation(&child);
                    todo.push((child, child_needed));
                }
            }
            Document::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    let elsewhere =
                        !blob.urls.is_empty() || media_types::is_foreign(&blob.media_type);
                    if !needed || options.allow_missing || elsewhere {
                        continue;
                    }
                    match content.info(ctx, &blob.digest).await {
                        Err(err) if err.is_not_found() => return Err(missing(blob)),
                        info => {
                            let size = info?.size;
                            if u64::try_from(blob.size) != Ok(size) {
                                return Err(Error::invalid_argument(format!(
                                    "image content {}: it has {size} bytes, its manifest says {}",
                                    blob.digest, blob.size
                                )));
                            }
                        }
                    }
                }
            }
        }
    }
    // Side by side, so that many share one durable write; the lease holds the content meanwhile.
    let content = &content;
    stream::iter(labels)
        .map(|(target, labels)| async move {
            content::add_labels(content, ctx, &target, labels, None).await
        })
        .buffer_unordered(LABELS_AT_ONCE)
        .try_collect()
        .await
}

fn missing(target: &Descriptor) -> Error {
    Error::invalid_argument(format!(
        "image content {} ({}) is named by the archive but not in it",
        target.digest, target.media_type
    ))
}
