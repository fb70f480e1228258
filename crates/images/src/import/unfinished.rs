//! Ingests of an import, none of which is left behind.

use gantry_content::WriterOptions;
use gantry_core::{Context, Digest, Labels};
use gantry_errdefs::Result;
use gantry_metadata::{Content, ContentWriter, Db};

use crate::content;

/// An ingest that is dropped unless it becomes a blob: an import is not gone on with. So its reference
/// has to be the import's own.
pub(super) struct Unfinished {
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
    pub(super) async fn open(
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

    /// Makes it a blob.
    ///
    /// # Errors
    /// AlreadyExists when it is one already, which is as good; the content store's.
    pub(super) async fn commit(
        mut self,
        writer: ContentWriter,
        size: u64,
        digest: &Digest,
        labels: Labels,
    ) -> Result<()> {
        // A commit comes to its own end, also when nobody waits for it.
        let reference = self.reference.take();
        match content::commit(writer, size, digest, labels).await {
            Err(err) if !err.is_already_exists() => {
                self.reference = reference;
                Err(err)
            }
            committed => committed.map(drop),
        }
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
                    tracing::warn!(reference, %err, "import: ingest left");
                }
                _ => {}
            }
        });
    }
}
