//! Export by this program: an OCI layout as a tar archive.

use std::collections::BTreeSet;

use gantry_archive::tar;
use gantry_core::image::{
    Document, INDEX_DEPTH_MAX, Index, NAME_ANNOTATION, REF_ANNOTATION, blob_path,
};
use gantry_core::platforms::Matcher;
use gantry_core::reference::Reference;
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

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
    let (mut blobs, mut manifests) = (BTreeSet::new(), Vec::new());
    for name in images {
        let mut target = client.images().get(name).await?.target;
        collect(&content, &target, &matcher, options, &mut blobs).await?;
        target.annotations.insert(NAME_ANNOTATION.to_owned(), name.clone());
        let tag = Reference::parse(name).ok().and_then(|r| r.tag().map(str::to_owned));
        if let Some(tag) = tag {
            target.annotations.insert(REF_ANNOTATION.to_owned(), tag);
        }
        manifests.push(target);
    }
    let index = Index {
        schema_version: 2,
        media_type: media_types::OCI_INDEX.to_owned(),
        manifests,
        annotations: Default::default(),
    };
    let index = serde_json::to_vec(&index)
        .map_err(|e| Error::internal(format!("encoding an archive's index: {e}")))?;
    let mut out = Archive { out: archive, size: 0 };
    for digest in &blobs {
        out.blob(&content, digest).await?;
    }
    out.file("index.json", &index).await?;
    out.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).await?;
    out.put(&tar::END).await?;
    out.out.flush().await.context(|| "writing the archive")?;
    Ok(out.size)
}

/// Adds all that `target` leads to; of platforms that were not asked for, what is there.
async fn collect(
    content: &Content,
    target: &Descriptor,
    matcher: &Matcher,
    options: &ExportOptions,
    blobs: &mut BTreeSet<Digest>,
) -> Result<()> {
    let mut todo = vec![(target.clone(), 0, true)];
    while let Some((next, depth, needed)) = todo.pop() {
        if blobs.contains(&next.digest) {
            continue;
        }
        if depth > INDEX_DEPTH_MAX {
            let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", next.digest);
            return Err(Error::invalid_argument(why));
        }
        match content.info(&next.digest).await {
            Err(e) if e.is_not_found() && !needed => continue,
            info => drop(info?),
        }
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
        blobs.insert(next.digest);
    }
    Ok(())
}

/// Writes members and counts bytes.
struct Archive<'a, W> {
    out: &'a mut W,
    size: u64,
}

impl<W: AsyncWrite + Unpin + Send> Archive<'_, W> {
    async fn blob(&mut self, content: &Content, digest: &Digest) -> Result<()> {
        let size = content.info(digest).await?.size.unsigned_abs();
        let name = blob_path(digest);
        self.put(&tar::file_header(&name, size)).await?;
        let mut reader = content.reader(digest, 0).await?;
        while let Some(piece) = reader.next().await? {
            self.put(&piece).await?;
        }
        self.put(tar::padding(size)).await
    }

    async fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let size = bytes.len() as u64;
        self.put(&tar::file_header(name, size)).await?;
        self.put(bytes).await?;
        self.put(tar::padding(size)).await
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.size += bytes.len() as u64;
        self.out.write_all(bytes).await.context(|| "writing the archive")
    }
}
