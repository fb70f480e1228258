//! Ingests that nobody else can go on with, none of which is left behind.

use std::future::Future;

use gantry_content::WriterOptions;
use gantry_core::Context;
use gantry_errdefs::Result;
use gantry_metadata::{Content, ContentWriter, Db};

/// An ingest that is dropped unless it becomes a blob. Its reference has to be one that nobody else
/// uses: what nobody knows cannot be gone on with.
pub(crate) struct Unfinished {
    content: Content,
    ctx: Context,
    /// None once it is a blob.
    reference: Option<String>,
}

impl Unfinished {
    /// Opens one.
    ///
    /// # Errors
    /// AlreadyExists when the blob that `options` expects is there; the content store's.
    pub(crate) async fn open(
        db: &Db,
        ctx: &Context,
        options: WriterOptions,
    ) -> Result<(Self, ContentWriter)> {
        let (content, reference) = (db.content(), Some(options.reference.clone()));
        // Before the ingest is there: this may be dropped while it comes about.
        let unfinished = Self { content, ctx: ctx.clone(), reference };
        let writer = unfinished.content.writer(ctx, options).await?;
        Ok((unfinished, writer))
    }

    /// Makes it a blob by `commit`.
    ///
    /// # Errors
    /// AlreadyExists when it is one already, which is as good; else that of `commit`.
    pub(crate) async fn end<T>(mut self, commit: impl Future<Output = Result<T>>) -> Result<T> {
        // A commit comes to its own end, also when nobody waits for it.
        let reference = self.reference.take();
        let committed = commit.await;
        if committed.as_ref().is_err_and(|err| !err.is_already_exists()) {
            self.reference = reference;
        }
        committed
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(reference) = self.reference.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (content, ctx) = (self.content.clone(), self.ctx.clone());
        runtime.spawn(async move {
            match content.abort(&ctx, &reference).await {
                Err(err) if !err.is_not_found() => {
                    tracing::warn!(reference, %err, "an ingest is left");
                }
                _ => {}
            }
        });
    }
}
