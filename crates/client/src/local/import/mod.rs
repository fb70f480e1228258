//! Import by this program: an OCI layout, or what docker saves, as a tar archive, compressed or
//! not (`gantry-layout`). Blobs go into the content store as they come.

mod blobs;
mod docker;

use gantry_core::image::{Document, INDEX_DEPTH_MAX, Index, NAME_ANNOTATION, REF_ANNOTATION};
use gantry_core::platforms::Matcher;
use gantry_core::{Descriptor, Digest};
use gantry_errdefs::{Error, Result};
use gantry_layout::Contents;
use tokio::io::AsyncRead;

use self::blobs::Ingests;
use super::gc_labels;
use crate::client::Client;
use crate::image::Image;
use crate::images::ImageRecord;
use crate::transfer::{ImportOptions, dated_name};
use crate::unpack::UnpackOptions;

/// Imports the images of an archive; returns those that have names.
pub(crate) async fn import(
    client: &Client,
    archive: impl AsyncRead + Unpin + Send + 'static,
    options: &ImportOptions,
) -> Result<Vec<Image>> {
    let guard = client.leases().guard().await?;
    let imported = import_leased(guard.client(), archive, options).await;
    let released = guard.release().await;
    let records = imported?;
    released?;
    Ok(records.into_iter().map(|record| client.image_of(record)).collect())
}

async fn import_leased(
    client: &Client,
    archive: impl AsyncRead + Unpin + Send + 'static,
    options: &ImportOptions,
) -> Result<Vec<ImageRecord>> {
    let archived = gantry_layout::read(&Ingests::new(client), archive).await?;
    let images = match archived.contents()? {
        Contents::Layout(bytes) => Index::parse(&Digest::of(bytes), bytes)?.manifests,
        Contents::Docker(images) => {
            let mut entries = Vec::new();
            for image in &images {
                entries.extend(docker::entries(client, image).await?);
            }
            entries
        }
    };
    let mut records = Vec::new();
    for target in &images {
        label_tree(client, target).await?;
        for name in names(target, options) {
            let record = ImageRecord::new(
                name,
                Descriptor { annotations: Default::default(), ..target.clone() },
            );
            records.push(client.images().create_or_update(&record).await?);
        }
    }
    if let Some(snapshotter) = &options.unpack {
        for record in &records {
            let image =
                client.resolve_target(&record.name, &record.target, &Matcher::host()).await?;
            let unpack = UnpackOptions::with_snapshotter(snapshotter);
            client.unpack(&image, &unpack).await?;
        }
    }
    Ok(records)
}

/// The names an image gets: its own full one, else base name and tag.
fn names(target: &Descriptor, options: &ImportOptions) -> Vec<String> {
    let base = options.base_name.clone();
    let mut names = Vec::new();
    let own = |key| target.annotations.get(key).cloned();
    match (own(NAME_ANNOTATION), own(REF_ANNOTATION)) {
        (Some(full), _) if base.as_ref().is_none_or(|b| full.starts_with(b)) => names.push(full),
        (_, Some(tag)) if tag.contains(['/', ':']) => names.push(tag),
        (_, Some(tag)) => names.push(format!("{}:{tag}", base.clone().unwrap_or_else(dated_name))),
        _ => {}
    }
    if options.digests {
        names.push(format!("{}@{}", base.unwrap_or_else(dated_name), target.digest));
    }
    names
}

/// Checks that what the top leads to is there, and labels documents so that they keep it.
async fn label_tree(client: &Client, top: &Descriptor) -> Result<()> {
    let content = client.content();
    let mut todo = vec![(top.clone(), 0)];
    while let Some((next, depth)) = todo.pop() {
        if depth > INDEX_DEPTH_MAX {
            let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", next.digest);
            return Err(Error::invalid_argument(why));
        }
        if !next.is_document() {
            continue;
        }
        let bytes = match content.read(&next.digest).await {
            // Platforms that the archive leaves out.
            Err(e) if e.is_not_found() && depth > 0 => continue,
            Err(e) if e.is_not_found() => {
                let why = format!("archive: it names {} but does not have it", next.digest);
                return Err(Error::invalid_argument(why));
            }
            other => other?,
        };
        let document = Document::parse(&next, &bytes)?;
        content.set_labels(&next.digest, &gc_labels(&document)).await?;
        todo.extend(document.children().into_iter().map(|(_, child)| (child.clone(), depth + 1)));
    }
    Ok(())
}
