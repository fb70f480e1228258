//! Push: from the image store to a registry.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use gantry_core::image::{Document, INDEX_DEPTH_MAX};
use gantry_core::platforms::Matcher;
use gantry_core::{Context, Descriptor, Labels, Reference, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_registry::{BlobSource, Pushed, Repository, Resolver};

use crate::content;
use crate::lease;
use crate::progress::{Progress, ProgressSink, Reporter, Stage};
use crate::read::resolve_manifest;
use crate::transfer::Transfer;

/// Blobs pushed at once in one push, unless configured otherwise (containerd's number).
pub const UPLOADS_MAX_DEFAULT: usize = 3;

/// What to push, and where to.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Name of the image in the store.
    pub image: String,
    /// Where it goes; its tag is set, if it has one.
    pub reference: Reference,
    /// How to get there; see [`Transfer::resolver`].
    pub resolver: Resolver,
    /// Push only the manifest for this platform; None pushes everything the image has.
    pub platform: Option<Matcher>,
    /// Who is told how far it is.
    pub progress: ProgressSink,
}

impl Transfer {
    /// Pushes an image: blobs first, then manifests, the top one last and under the tag, so that
    /// the registry never shows half an image. Blobs the registry has are not sent, and blobs
    /// that came from another of its repositories are mounted from there.
    ///
    /// # Errors
    /// NotFound for the image, or for content that is not in the store (an index of which only
    /// some platforms were pulled: choose one); the classes of the registry with host and reason.
    pub async fn push(&self, ctx: &Context, options: PushOptions) -> Result<Descriptor> {
        let (progress, reference) = (options.progress.clone(), options.reference.clone());
        progress.message(format!("Pushing to OCI Registry ({reference})"));
        let (ctx, own) = lease::ensure(self.db(), ctx).await?;
        let pushed = own.end(self.push_leased(&ctx, options).await).await?;
        progress.message(format!("Completed push to OCI Registry ({reference})"));
        Ok(pushed)
    }

    async fn push_leased(&self, ctx: &Context, options: PushOptions) -> Result<Descriptor> {
        let PushOptions { image, reference, resolver, platform, progress } = options;
        let image = self.db().images().get(ctx, &image).await?;
        let repository = resolver.repository(&reference).await?;
        let content = self.db().content();
        let top = match platform {
            Some(matcher) => resolve_manifest(&content, ctx, &image.target, &matcher).await?.0,
            None => image.target.clone(),
        };
        let done = Mutex::default();
        let push = Push { transfer: self, ctx, repository: &repository, progress: &progress, done };
        progress.send(Progress::named(Stage::PushingContent, &image.name));
        let pushed = push.run(&top, vec![image.name.clone()]).await;
        let noted = push.note().await;
        pushed.and(noted).context(|| format!("image {:?}", image.name))?;
        Ok(top)
    }
}

/// One push under way.
struct Push<'a> {
    transfer: &'a Transfer,
    ctx: &'a Context,
    repository: &'a Repository,
    progress: &'a ProgressSink,
    /// What the repository has by now.
    done: Mutex<Vec<Descriptor>>,
}

/// A document to push after what it points at.
struct Level {
    descriptor: Descriptor,
    bytes: Bytes,
    parents: Vec<String>,
}

impl Push<'_> {
    async fn run(&self, top: &Descriptor, whole: Vec<String>) -> Result<()> {
        let mut documents = Vec::new();
        let mut blobs = Vec::new();
        self.collect(top.clone(), whole, 0, &mut documents, &mut blobs).await?;
        blobs.sort_by(|(a, _), (b, _): &(Descriptor, Vec<String>)| a.digest.cmp(&b.digest));
        blobs.dedup_by(|(a, _), (b, _)| a.digest == b.digest);
        let each = blobs
            .into_iter()
            .map(|(blob, parents)| async move { self.blob(&blob, &parents).await });
        let uploads_max = self.transfer.options().uploads_max.max(1);
        futures_util::stream::iter(each).buffer_unordered(uploads_max).try_collect::<()>().await?;
        // Children were collected after their parents: from the end up, each comes before what
        // points at it.
        while let Some(level) = documents.pop() {
            let tag = if documents.is_empty() { self.repository.reference().tag() } else { None };
            self.document(level, tag).await?;
        }
        Ok(())
    }

    /// Lists the documents under `descriptor`, parents first, and the blobs they point at.
    fn collect<'s>(
        &'s self,
        descriptor: Descriptor,
        parents: Vec<String>,
        depth: usize,
        documents: &'s mut Vec<Level>,
        blobs: &'s mut Vec<(Descriptor, Vec<String>)>,
    ) -> BoxFuture<'s, Result<()>> {
        async move {
            if depth > INDEX_DEPTH_MAX {
                let digest = &descriptor.digest;
                let text = format!("index {digest}: nested more than {INDEX_DEPTH_MAX} deep");
                return Err(Error::invalid_argument(text));
            }
            let content = self.transfer.db().content();
            let bytes = content::read_document(&content, self.ctx, &descriptor).await?;
            let document = Document::parse(&descriptor, &bytes)?;
            let mut below = parents.clone();
            below.push(content::ref_key(&descriptor));
            documents.push(Level { descriptor, bytes, parents });
            for (_, child) in document.children() {
                let media_type = &child.media_type;
                if media_types::is_manifest(media_type) || media_types::is_index(media_type) {
                    let (child, below) = (child.clone(), below.clone());
                    self.collect(child, below, depth + 1, &mut *documents, &mut *blobs).await?;
                } else if !media_types::is_foreign(media_type) {
                    blobs.push((child.clone(), below.clone()));
                }
            }
            Ok(())
        }
        .boxed()
    }

    async fn blob(&self, blob: &Descriptor, parents: &[String]) -> Result<()> {
        let reporter = Reporter::new(self.progress, blob, parents);
        reporter.stage(Stage::Waiting);
        let content = self.transfer.db().content();
        let info = content.info(self.ctx, &blob.digest).await?;
        let key = content::source_label(self.repository.reference().host());
        let sources = info.labels.get(&key).map(|v| content::source_repositories(v));
        let reader = content.reader(self.ctx, &blob.digest).await?;
        let source = Arc::new(Stored(reader));
        // Called from one upload at a time; the lock only makes it shareable.
        let bytes = Mutex::new(reporter.clone());
        let on_progress = move |done: u64| {
            let mut reporter = bytes.lock().unwrap_or_else(PoisonError::into_inner);
            reporter.bytes(Stage::Uploading, done);
        };
        let sources = sources.unwrap_or_default();
        let pushed = self.repository.push_blob(blob, source, &sources, &on_progress).await?;
        self.pushed(blob, &reporter, pushed);
        Ok(())
    }

    async fn document(&self, level: Level, tag: Option<&str>) -> Result<()> {
        let reporter = Reporter::new(self.progress, &level.descriptor, &level.parents);
        let pushed = self.repository.push_manifest(&level.descriptor, level.bytes, tag).await?;
        self.pushed(&level.descriptor, &reporter, pushed);
        Ok(())
    }

    fn pushed(&self, pushed: &Descriptor, reporter: &Reporter, how: Pushed) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(pushed.clone());
        let existed = how == Pushed::Existed;
        reporter.stage(if existed { Stage::Exists } else { Stage::Complete });
    }

    /// Notes where the content is now, so that the next push can mount it from there. All at once,
    /// so that it is one durable write.
    async fn note(&self) -> Result<()> {
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        let content = self.transfer.db().content();
        let origin = Some(self.repository.reference());
        let each = done
            .iter()
            .map(|pushed| content::add_labels(&content, self.ctx, pushed, Labels::new(), origin));
        try_join_all(each).await.map(drop)
    }
}

/// A blob of the store as a source.
struct Stored(Box<dyn gantry_content::Reader>);

#[async_trait]
impl BlobSource for Stored {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.0.read_at(offset, len).await
    }
}
