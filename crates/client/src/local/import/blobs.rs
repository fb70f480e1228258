//! Blobs of an archive, on their way into the daemon's content store.

use bytes::Bytes;
use gantry_core::{Algorithm, Digest, Digester, Labels};
use gantry_errdefs::Result;
use gantry_layout::Blobs;

use crate::client::Client;
use crate::content::{ContentWriter, WriterOptions};

/// The daemon's content store, for one import.
pub(super) struct Ingests<'a> {
    client: &'a Client,
    /// Goes into the references of bytes that nobody has named yet: another import has a write of its
    /// own.
    random: String,
}

/// A blob on its way.
pub(super) struct Ingest {
    writer: ContentWriter,
    digest: Naming,
}

/// How the digest of a blob is known.
enum Naming {
    Promised(Digest),
    Counted(Digester),
}

impl<'a> Ingests<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        let random = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
        Self { client, random }
    }
}

impl Blobs for Ingests<'_> {
    type Writer = Ingest;

    async fn begin(&self, name: &str, digest: Option<&Digest>, size: u64) -> Result<Ingest> {
        let reference = match digest {
            Some(digest) => format!("import-{digest}"),
            None => format!("import-{}-{name}", self.random),
        };
        let total = i64::try_from(size).unwrap_or(i64::MAX);
        let options = WriterOptions { reference, total, expected: digest.cloned() };
        let mut writer = self.client.content().writer(options).await?;
        writer.restart().await?;
        let digest = match digest {
            Some(digest) => Naming::Promised(digest.clone()),
            None => Naming::Counted(Digester::new(Algorithm::Sha256)),
        };
        Ok(Ingest { writer, digest })
    }

    async fn write(&self, ingest: &mut Ingest, piece: Bytes) -> Result<()> {
        if let Naming::Counted(digester) = &mut ingest.digest {
            digester.update(&piece);
        }
        ingest.writer.write(piece).await
    }

    async fn end(&self, ingest: Ingest) -> Result<Digest> {
        match ingest.writer.commit(&Labels::new()).await {
            Err(err) if !err.is_already_exists() => return Err(err),
            _ => {}
        }
        Ok(match ingest.digest {
            Naming::Promised(digest) => digest,
            Naming::Counted(digester) => digester.finish(),
        })
    }

    async fn head(&self, digest: &Digest, len: usize) -> Result<(u64, Bytes)> {
        let content = self.client.content();
        let size = content.info(digest).await?.size;
        let len = i64::try_from(len).unwrap_or(i64::MAX).min(size);
        Ok((size.unsigned_abs(), content.read_at(digest, 0, len).await?))
    }
}
