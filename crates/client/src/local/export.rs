//! Export by this program: an OCI layout as a tar archive.

use std::collections::BTreeMap;

use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_core::platforms::Matcher;
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Error, Result};
use gantry_layout::{ArchiveWriter, named};
use tokio::io::AsyncWrite;

use super::matcher;
use crate::client::Client;
use crate::content::Content;
use crate::transfer::ExportOptions;

/// Writes images as an archive; returns its size.
pub(crate) async fn export(
    client: &Client,
    images: &[String],
    options: &ExportOptions,
    archive: &mut (impl AsyncWrite + Unpin + Send),
) -> Result<u64> {
    if images.is_empty() {
        return Err(Error::invalid_argument("no images to export"));
    }
    let matcher = matcher(options.all_platforms, &options.platforms);
    let content = client.content();
    let (mut blobs, mut manifests) = (BTreeMap::new(), Vec::new());
    for name in images {
        let target = client.images().get(name).await?.target;
        collect(&content, &target, &matcher, options, &mut blobs).await?;
        manifests.push(named(target, name));
    }
    let mut archive = ArchiveWriter::new(archive).await?;
    for (digest, size) in &blobs {
        archive.blob(digest, *size).await?;
        let mut reader = content.reader(digest, 0).await?;
        while let Some(piece) = reader.next().await? {
            archive.piece(piece).await?;
        }
    }
    archive.finish(manifests, &[]).await
}

/// Adds all that `target` leads to, with its size; of platforms that were not asked for, what is there.
async fn collect(
    content: &Content,
    target: &Descriptor,
    matcher: &Matcher,
    options: &ExportOptions,
    blobs: &mut BTreeMap<Digest, u64>,
) -> Result<()> {
    let mut todo = vec![(target.clone(), 0, true)];
    while let Some((next, depth, needed)) = todo.pop() {
        if blobs.contains_key(&next.digest) {
            continue;
        }
        if depth > INDEX_DEPTH_MAX {
            let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", next.digest);
            return Err(Error::invalid_argument(why));
        }
        let info = match content.info(&next.digest).await {
            Err(e) if e.is_not_found() && !needed => continue,
            info => info?,
        };
        if next.is_document() {
            let document = Document::parse(&next, &content.read(&next.digest).await?)?;
            for (_, child) in document.children() {
                let fits = child.platform.as_ref().is_none_or(|p| matcher.matches(p));
                let foreign = !child.urls.is_empty();
                if options.skip_non_distributable && media_types::is_foreign(&child.media_type) {
                    continue;
                }
                todo.push((child.clone(), depth + 1, needed && fits && !foreign));
            }
        }
        blobs.insert(next.digest, info.size.unsigned_abs());
    }
    Ok(())
}
