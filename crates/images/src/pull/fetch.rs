//! From a registry into the content store.

use std::sync::Arc;

use bytes::Bytes;
use gantry_core::image::{Document, ImageConfig};
use gantry_core::{Context, Descriptor, Digest, Labels, Reference};
use gantry_errdefs::{Class, Error, Result, ResultExt};
use gantry_metadata::{Content, ContentWriter};
use gantry_registry::Repository;
use tokio::sync::Semaphore;

use crate::budget::Budget;
use crate::content::{self, Opened};
use crate::flights::Flights;
use crate::progress::{ProgressSink, Reporter, Stage};
use crate::unpack::feed::Offer;

/// Fetches content of one repository into one namespace. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fetcher {
    inner: Arc<Inner>,
}

struct Inner {
    content: Content,
    ctx: Context,
    repository: Repository,
    progress: ProgressSink,
    /// One permit per blob on its way.
    downloads: Semaphore,
    budget: Budget,
    flights: Arc<Flights<Digest>>,
}

/// What bounds the fetching.
pub(super) struct Limits {
    /// Blobs at once, for this pull.
    pub(super) downloads_max: usize,
    /// What all pulls share.
    pub(super) budget: Budget,
    /// Blobs on their way, whoever wants them.
    pub(super) flights: Arc<Flights<Digest>>,
}

impl Fetcher {
    pub(super) fn new(
        content: Content,
        ctx: Context,
        repository: Repository,
        progress: ProgressSink,
        limits: Limits,
    ) -> Self {
        let Limits { downloads_max, budget, flights } = limits;
        let downloads = Semaphore::new(downloads_max.max(1));
        let inner = Inner { content, ctx, repository, progress, downloads, budget, flights };
        Self { inner: Arc::new(inner) }
    }

    fn origin(&self) -> &Reference {
        self.inner.repository.reference()
    }

    /// A manifest or index, parsed, and in the store with labels that keep its children. `known`
    /// are its bytes if they are at hand.
    pub(super) async fn document(
        &self,
        descriptor: &Descriptor,
        parents: &[String],
        known: Option<Bytes>,
    ) -> Result<Document> {
        let Inner { content, ctx, repository, progress, flights, .. } = &*self.inner;
        let reporter = Reporter::new(progress, descriptor, parents);
        reporter.stage(Stage::Waiting);
        let turn = flights.enter(descriptor.digest.clone());
        let _turn = turn.lock().await;
        match content::open(content, ctx, descriptor).await? {
            Opened::Exists => {
                let bytes = content::read_document(content, ctx, descriptor).await?;
                let document = Document::parse(descriptor, &bytes)?;
                let labels = content::gc_labels(&document);
                let origin = Some(self.origin());
                content::add_labels(content, ctx, descriptor, labels, origin).await?;
                reporter.stage(Stage::Exists);
                Ok(document)
            }
            Opened::Writer(writer) => {
                let fetched = match known {
                    Some(bytes) => Ok(bytes),
                    None => repository.manifest(descriptor).await,
                };
                // Parsed before it is stored: what we cannot use is not kept.
                let parsed = fetched.and_then(|bytes| {
                    let document = Document::parse(descriptor, &bytes)?;
                    Ok((document, bytes))
                });
                let (document, bytes) = match parsed {
                    Ok(parsed) => parsed,
                    Err(e) => return Err(self.discard(descriptor, writer, e).await),
                };
                let labels = content::gc_labels(&document);
                self.store(descriptor, writer, bytes, labels).await?;
                reporter.stage(Stage::Complete);
                Ok(document)
            }
        }
    }

    /// An image config, parsed.
    pub(super) async fn config(
        &self,
        descriptor: &Descriptor,
        parents: &[String],
    ) -> Result<ImageConfig> {
        self.blob(descriptor, parents, None).await?;
        let Inner { content, ctx, .. } = &*self.inner;
        let bytes = content::read_document(content, ctx, descriptor).await?;
        ImageConfig::parse(&descriptor.digest, &bytes)
    }

    /// Any blob. If the other side of `offer` wants them, the bytes go there too while they arrive
    /// from the network, provided that all of them do.
    pub(super) async fn blob(
        &self,
        descriptor: &Descriptor,
        parents: &[String],
        mut offer: Option<Offer>,
    ) -> Result<()> {
        let Inner { content, ctx, progress, downloads, flights, .. } = &*self.inner;
        let mut reporter = Reporter::new(progress, descriptor, parents);
        reporter.stage(Stage::Waiting);
        // Before anything that others wait for: who has the turn needs it.
        let turn = flights.enter(descriptor.digest.clone());
        let _turn = turn.lock().await;
        let permit = downloads.acquire().await;
        let _permit = permit.map_err(|_| Error::internal("download limit closed"))?;
        loop {
            let writer = match content::open(content, ctx, descriptor).await? {
                Opened::Exists => {
                    let origin = Some(self.origin());
                    content::add_labels(content, ctx, descriptor, Labels::new(), origin).await?;
                    reporter.stage(Stage::Exists);
                    return Ok(());
                }
                Opened::Writer(writer) => writer,
            };
            let resumed = writer.status().offset;
            match self.download(descriptor, writer, &mut reporter, offer.take()).await {
                Ok(()) => {
                    reporter.stage(Stage::Complete);
                    return Ok(());
                }
                // What was there before may be what is wrong: once more from the beginning.
                Err(e) if e.is_failed_precondition() && resumed > 0 => {
                    tracing::warn!(digest = %descriptor.digest, resumed, error = %e,
                        "resumed blob is damaged: fetching it again");
                    self.abort(descriptor).await;
                }
                Err(e) if e.is_failed_precondition() => {
                    self.abort(descriptor).await;
                    return Err(Error::new(
                        Class::DataLoss,
                        format!("blob of {}: {}", self.origin().locator(), e.message()),
                    ));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Fetches what the ingest lacks and commits it. FailedPrecondition when the digest differs.
    async fn download(
        &self,
        descriptor: &Descriptor,
        mut writer: Box<ContentWriter>,
        reporter: &mut Reporter,
        offer: Option<Offer>,
    ) -> Result<()> {
        let size = u64::try_from(descriptor.size).unwrap_or(0);
        let mut offset = writer.status().offset;
        if offset > size {
            writer.truncate(0).await?;
            offset = 0;
        }
        let mut feed = None;
        if offset < size {
            let mut share = self.inner.budget.share(descriptor, size - offset).await?;
            let mut stream = self.inner.repository.fetch(descriptor, offset).await?;
            reporter.bytes(Stage::Downloading, offset);
            let offer = offer.filter(|_| offset == 0);
            feed = offer.and_then(|offer| offer.accept(&self.inner.budget));
            while let Some(chunk) = stream.next().await? {
                if let Some(open) = &mut feed
                    && !open.send(&chunk).await
                {
                    // The unpacker has gone; whoever waits for it knows why.
                    feed = None;
                }
                let len = chunk.len() as u64;
                writer.write(chunk).await?;
                reporter.bytes(Stage::Downloading, stream.position());
                share.spend(len).await;
            }
        }
        if let Some(feed) = feed {
            feed.finish().await;
        }
        let mut labels = Labels::new();
        content::add_source(&mut labels, &Labels::new(), self.origin());
        match content::commit(*writer, size, &descriptor.digest, labels).await {
            Err(e) if e.is_already_exists() => Ok(()),
            committed => committed.map(drop),
        }
    }

    /// Writes and commits a small document whose digest was checked.
    async fn store(
        &self,
        descriptor: &Descriptor,
        mut writer: Box<ContentWriter>,
        bytes: Bytes,
        mut labels: Labels,
    ) -> Result<()> {
        if writer.status().offset > 0 {
            writer.truncate(0).await?;
        }
        let size = bytes.len() as u64;
        writer.write(bytes).await?;
        content::add_source(&mut labels, &Labels::new(), self.origin());
        match content::commit(*writer, size, &descriptor.digest, labels).await {
            Err(e) if e.is_already_exists() => Ok(()),
            committed => {
                committed.map(drop).context(|| format!("storing {}", content::ref_key(descriptor)))
            }
        }
    }

    /// Drops an ingest that nothing was written to, and hands the error on.
    async fn discard(
        &self,
        descriptor: &Descriptor,
        writer: Box<ContentWriter>,
        error: Error,
    ) -> Error {
        drop(writer);
        self.abort(descriptor).await;
        error
    }

    async fn abort(&self, descriptor: &Descriptor) {
        let reference = content::ref_key(descriptor);
        match self.inner.content.abort(&self.inner.ctx, &reference).await {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(reference, %error, "ingest not aborted");
            }
            _ => {}
        }
    }
}
