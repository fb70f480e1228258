//! Push by this program.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_core::reference::Reference;
use gantry_core::{Descriptor, Labels, labels, media_types};
use gantry_errdefs::{Error, Result};
use gantry_registry::{BlobSource, Repository};

use super::{BLOBS_AT_ONCE, Steps, followed, matcher, with_origin};
use crate::client::Client;
use crate::content::Content;
use crate::transfer::{Progress, PushOptions};

/// Largest piece of a blob read at once: a message of the content service.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// One push: where from and where to.
struct Push {
    content: Content,
    repository: Repository,
    steps: Steps,
}

/// A blob of the daemon's, as the registry's client reads it.
struct Stored {
    content: Content,
    blob: Descriptor,
}

/// Pushes as `options` say.
pub(crate) async fn push(
    client: &Client,
    options: &PushOptions,
    progress: impl FnMut(Progress),
) -> Result<()> {
    let reference = Reference::parse(&options.reference)?;
    let repository = options.registry.resolver().repository(&reference).await?;
    let top = match &options.manifest {
        Some(manifest) => manifest.clone(),
        None => target(client, options).await?,
    };
    let content = client.content();
    let work = |steps| Push { content, repository, steps }.run(top);
    followed(work, progress).await
}

/// What the image is to the registry: all of it, or the manifest for a platform.
async fn target(client: &Client, options: &PushOptions) -> Result<Descriptor> {
    let record = client.images().get(&options.image).await?;
    if options.platforms.is_empty() {
        return Ok(record.target);
    }
    let wanted = matcher(false, &options.platforms);
    let image = client.resolve_target(&options.image, &record.target, &wanted).await?;
    Ok(image.manifest_descriptor)
}

impl Push {
    async fn run(self, top: Descriptor) -> Result<()> {
        let (mut documents, mut blobs) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        let mut todo = vec![(top, 0)];
        while let Some((next, depth)) = todo.pop() {
            if !seen.insert(next.digest.clone()) {
                continue;
            }
            if depth > INDEX_DEPTH_MAX {
                let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", next.digest);
                return Err(Error::invalid_argument(why));
            }
            if !next.is_document() {
                blobs.push(next);
                continue;
            }
            let bytes = self.content.read(&next.digest).await?;
            let document = Document::parse(&next, &bytes)?;
            let children = document.children().into_iter();
            todo.extend(children.map(|(_, child)| (child.clone(), depth + 1)));
            documents.push((depth, next, bytes));
        }
        let uploads: Vec<_> = blobs.iter().map(|blob| self.blob(blob).boxed()).collect();
        stream::iter(uploads).buffer_unordered(BLOBS_AT_ONCE).try_collect::<()>().await?;
        // A registry takes a document only after all that it names: the deepest go first.
        documents.sort_by_key(|(depth, _, _)| std::cmp::Reverse(*depth));
        for (depth, descriptor, bytes) in documents {
            let tag = if depth == 0 { self.repository.reference().tag() } else { None };
            self.repository.push_manifest(&descriptor, bytes, tag).await?;
            let name = descriptor.digest.to_string();
            self.steps.tell("complete", &name, descriptor.size, descriptor.size).await;
        }
        Ok(())
    }

    async fn blob(&self, blob: &Descriptor) -> Result<()> {
        // Layers that may not be distributed stay where they are.
        if media_types::is_foreign(&blob.media_type) {
            return Ok(());
        }
        let name = blob.digest.to_string();
        self.steps.tell("uploading", &name, 0, blob.size).await;
        let source = Stored { content: self.content.clone(), blob: blob.clone() };
        let to = self.repository.reference();
        let known = self.content.info(&blob.digest).await?.labels;
        let sources = known.get(&labels::source_label(to.host()));
        let sources = sources.map(|list| labels::source_repositories(list)).unwrap_or_default();
        self.repository.push_blob(blob, std::sync::Arc::new(source), &sources, &|_| {}).await?;
        // The next push can take it from here.
        let labels = with_origin(&self.content, &blob.digest, Labels::new(), to).await?;
        self.content.set_labels(&blob.digest, &labels).await?;
        self.steps.tell("complete", &name, blob.size, blob.size).await;
        Ok(())
    }
}

#[async_trait]
impl BlobSource for Stored {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        if offset >= self.blob.size {
            return Ok(Bytes::new());
        }
        let len = i64::try_from(len.min(PIECE_BYTES_MAX)).unwrap_or(0);
        self.content.read_at(&self.blob.digest, offset, len).await
    }
}
