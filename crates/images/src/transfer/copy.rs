//! From one registry to another, past the store.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_core::{Descriptor, Reference, media_types};
use gantry_errdefs::{Error, Result};
use gantry_registry::{BlobSource, BlobStream, Pushed, Repository, Resolver};
use tokio::sync::Mutex;

use super::Transfer;
use crate::content::ref_key;
use crate::progress::{Progress, ProgressSink, Reporter, Stage};

/// Documents and blobs of one image: far above any real one, small enough to hold in memory.
const OBJECTS_MAX: usize = 16_384;

/// What is copied where.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// The image.
    pub from: Reference,
    /// The way to it.
    pub from_resolver: Resolver,
    /// Where it goes; its tag is set, if it has one.
    pub to: Reference,
    /// The way there.
    pub to_resolver: Resolver,
    /// Who is told how far it is.
    pub progress: ProgressSink,
}

impl Transfer {
    /// Copies an image with all its platforms from registry to registry. Nothing of it is stored
    /// here; blobs that the other registry has, or can take over from one of its repositories, are
    /// not moved at all. The bytes are checked by the registry that takes them, documents here.
    ///
    /// # Errors
    /// As [`Transfer::pull`] and [`Transfer::push`], without those of the store.
    pub async fn copy(&self, options: CopyOptions) -> Result<Descriptor> {
        let CopyOptions { from, from_resolver, to, to_resolver, progress } = options;
        progress.message(format!("Copying from OCI Registry ({from}) to OCI Registry ({to})"));
        let source = from_resolver.repository(&from).await?;
        let target = to_resolver.repository(&to).await?;
        let resolved = source.resolve().await?;
        let mut copy = Copy {
            source,
            target,
            progress: progress.clone(),
            documents: Vec::new(),
            blobs: Vec::new(),
        };
        let whole = vec![to.to_string()];
        progress.send(Progress::named(Stage::PushingContent, to.to_string()));
        copy.collect(resolved.descriptor.clone(), whole, resolved.bytes, 0).await?;
        copy.run(self.options().uploads_max).await?;
        progress.message(format!("Completed copy to OCI Registry ({to})"));
        Ok(resolved.descriptor)
    }
}

/// A document to push after what it points at.
struct Level {
    descriptor: Descriptor,
    bytes: Bytes,
    parents: Vec<String>,
}

struct Copy {
    source: Repository,
    target: Repository,
    progress: ProgressSink,
    /// Parents before their children.
    documents: Vec<Level>,
    blobs: Vec<(Descriptor, Vec<String>)>,
}

impl Copy {
    fn collect(
        &mut self,
        descriptor: Descriptor,
        parents: Vec<String>,
        known: Option<Bytes>,
        depth: usize,
    ) -> BoxFuture<'_, Result<()>> {
        async move {
            let digest = &descriptor.digest;
            if depth > INDEX_DEPTH_MAX || self.documents.len() + self.blobs.len() > OBJECTS_MAX {
                let text = format!(
                    "index {digest}: more than {OBJECTS_MAX} objects, or {INDEX_DEPTH_MAX} levels"
                );
                return Err(Error::invalid_argument(text));
            }
            Reporter::new(&self.progress, &descriptor, &parents).stage(Stage::Waiting);
            let bytes = match known {
                Some(bytes) => bytes,
                None => self.source.manifest(&descriptor).await?,
            };
            let document = Document::parse(&descriptor, &bytes)?;
            let mut below = parents.clone();
            below.push(ref_key(&descriptor));
            self.documents.push(Level { descriptor, bytes, parents });
            for (_, child) in document.children() {
                let media_type = &child.media_type;
                if media_types::is_manifest(media_type) || media_types::is_index(media_type) {
                    self.collect(child.clone(), below.clone(), None, depth + 1).await?;
                } else if !media_types::is_foreign(media_type) {
                    self.blobs.push((child.clone(), below.clone()));
                }
            }
            Ok(())
        }
        .boxed()
    }

    async fn run(mut self, at_once: usize) -> Result<()> {
        let mut blobs = std::mem::take(&mut self.blobs);
        blobs.sort_by(|(a, _), (b, _)| a.digest.cmp(&b.digest));
        blobs.dedup_by(|(a, _), (b, _)| a.digest == b.digest);
        let mut documents = std::mem::take(&mut self.documents);
        let this = &self;
        let each =
            blobs.into_iter().map(|(blob, parents)| async move { this.blob(blob, &parents).await });
        futures_util::stream::iter(each)
            .buffer_unordered(at_once.max(1))
            .try_collect::<()>()
            .await?;
        // From the end up, each comes before what points at it.
        while let Some(level) = documents.pop() {
            let tag = if documents.is_empty() { self.target.reference().tag() } else { None };
            let reporter = Reporter::new(&self.progress, &level.descriptor, &level.parents);
            let pushed = self.target.push_manifest(&level.descriptor, level.bytes, tag).await?;
            reporter.stage(stage_of(pushed));
        }
        Ok(())
    }

    async fn blob(&self, blob: Descriptor, parents: &[String]) -> Result<()> {
        let reporter = Reporter::new(&self.progress, &blob, parents);
        reporter.stage(Stage::Waiting);
        let (from, to) = (self.source.reference(), self.target.reference());
        let near = if from.host() == to.host() { vec![from.path().to_owned()] } else { Vec::new() };
        // Called from one upload at a time; the lock only makes it shareable.
        let bytes = std::sync::Mutex::new(reporter.clone());
        let on_progress = move |done: u64| {
            let mut reporter = bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            reporter.bytes(Stage::Uploading, done);
        };
        let (repository, open) = (self.source.clone(), Mutex::default());
        let source = Arc::new(Remote { repository, blob: blob.clone(), open });
        let pushed = self.target.push_blob(&blob, source, &near, &on_progress).await?;
        reporter.stage(stage_of(pushed));
        Ok(())
    }
}

fn stage_of(pushed: Pushed) -> Stage {
    if pushed == Pushed::Existed { Stage::Exists } else { Stage::Complete }
}

/// A blob of a registry as a source of bytes. Uploads read on from where they were, unless they
/// begin again; then the blob is opened anew at that place.
struct Remote {
    repository: Repository,
    blob: Descriptor,
    /// Held over a read: an upload reads one piece after another.
    open: Mutex<Option<Open>>,
}

struct Open {
    stream: BlobStream,
    /// What was read and not handed out yet; it ends at the stream's position.
    rest: Bytes,
}

#[async_trait]
impl BlobSource for Remote {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut held = self.open.lock().await;
        let at = held.as_ref().map(|open| open.stream.position() - open.rest.len() as u64);
        if at != Some(offset) {
            let stream = self.repository.fetch(&self.blob, offset).await?;
            *held = Some(Open { stream, rest: Bytes::new() });
        }
        let open = held.as_mut().ok_or_else(|| Error::internal("a stream just opened is gone"))?;
        if open.rest.is_empty() {
            open.rest = open.stream.next().await?.unwrap_or_default();
        }
        let len = len.min(open.rest.len());
        Ok(open.rest.split_to(len))
    }
}
