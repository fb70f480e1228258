//! Blobs of an archive, on their way into the content store.

use bytes::Bytes;
use gantry_content::WriterOptions;
use gantry_core::{Context, Digest, Labels};
use gantry_errdefs::{Error, Result};
use gantry_layout::Blobs;
use gantry_metadata::{ContentWriter, Db};

use crate::content;
use crate::unfinished::Unfinished;
use crate::unpack::unique;

/// The content store, for one import.
pub(super) struct Ingests<'a> {
    db: &'a Db,
    ctx: &'a Context,
    /// Goes into the references of its ingests: another import of the same has its own.
    run: String,
}

/// A blob on its way.
pub(super) struct Ingest {
    writer: ContentWriter,
    expected: Option<Digest>,
    unfinished: Unfinished,
}

impl<'a> Ingests<'a> {
    pub(super) fn new(db: &'a Db, ctx: &'a Context) -> Self {
        Self { db, ctx, run: unique("import") }
    }
}

impl Blobs for Ingests<'_> {
    type Writer = Ingest;

    async fn begin(&self, name: &str, digest: Option<&Digest>, size: u64) -> Result<Ingest> {
        let run = &self.run;
        let reference = match digest {
            Some(digest) => format!("blob-{run}-{digest}"),
            None => format!("tar-{run}-{name}"),
        };
        let expected = digest.cloned();
        let options = WriterOptions { reference, total: size, expected: expected.clone() };
        let (unfinished, writer) = Unfinished::open(self.db, self.ctx, options).await?;
        Ok(Ingest { writer, expected, unfinished })
    }

    async fn write(&self, ingest: &mut Ingest, piece: Bytes) -> Result<()> {
        ingest.writer.write(piece).await
    }

    async fn end(&self, ingest: Ingest) -> Result<Digest> {
        let Ingest { writer, expected, unfinished } = ingest;
        let (digest, size) = (writer.digest(), writer.status().offset);
        if expected.is_some_and(|expected| expected != digest) {
            return Err(Error::invalid_argument(format!("its bytes have digest {digest}")));
        }
        let commit = content::commit(writer, size, &digest, Labels::new());
        match unfinished.end(commit).await {
            Err(err) if !err.is_already_exists() => Err(err),
            _ => Ok(digest),
        }
    }

    async fn head(&self, digest: &Digest, len: usize) -> Result<(u64, Bytes)> {
        let reader = self.db.content().reader(self.ctx, digest).await?;
        let head = reader.read_at(0, len).await?;
        Ok((reader.size(), head))
    }
}
