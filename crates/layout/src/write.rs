//! Writing an archive.

use std::future::Future;

use bytes::Bytes;
use gantry_archive::tar;
use gantry_core::image::{ArchivedImage, Index, NAME_ANNOTATION, REF_ANNOTATION, blob_path};
use gantry_core::{Descriptor, Digest, Reference};
use gantry_errdefs::{Error, Result, ResultExt};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Where an archive or a layer is written to, in pieces that are large where there is much.
pub trait ArchiveOut: Send {
    /// Writes `bytes`.
    ///
    /// # Errors
    /// Whatever keeps them from being written; what was written is of no use then.
    fn put(&mut self, bytes: Bytes) -> impl Future<Output = Result<()>> + Send;

    /// Waits until everything is written.
    ///
    /// # Errors
    /// As [`ArchiveOut::put`].
    fn flush(&mut self) -> impl Future<Output = Result<()>> + Send;
}

impl<W: AsyncWrite + Send + Unpin> ArchiveOut for W {
    async fn put(&mut self, bytes: Bytes) -> Result<()> {
        self.write_all(&bytes).await.context(|| "write the archive")
    }

    async fn flush(&mut self) -> Result<()> {
        AsyncWriteExt::flush(self).await.context(|| "write the archive")
    }
}

/// An image as an archive's index names it.
pub fn named(mut target: Descriptor, name: &str) -> Descriptor {
    target.annotations.insert(NAME_ANNOTATION.to_owned(), name.to_owned());
    if let Some(tag) = Reference::parse(name).ok().and_then(|r| r.tag().map(str::to_owned)) {
        target.annotations.insert(REF_ANNOTATION.to_owned(), tag);
    }
    target
}

/// Writes an OCI image layout that docker loads as well. The same images give the same bytes: members
/// are sorted by name where blobs come in the order of their digests, times are zero.
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    out: W,
    /// Bytes written.
    size: u64,
    /// The digest algorithms whose directory is written.
    dirs: Vec<&'static str>,
    /// The blob on its way, and how many of its bytes are to come.
    blob: Option<(Digest, u64)>,
}

impl<W: ArchiveOut> ArchiveWriter<W> {
    /// Begins an archive.
    ///
    /// # Errors
    /// Those of `out`, as for all that follows.
    pub async fn new(out: W) -> Result<Self> {
        let mut writer = Self { out, size: 0, dirs: Vec::new(), blob: None };
        writer.put_slice(&tar::dir_header("blobs")).await?;
        Ok(writer)
    }

    /// Begins the blob `digest` of `size` bytes, which follow in pieces.
    ///
    /// # Errors
    /// DataLoss when the blob before is not whole.
    pub async fn blob(&mut self, digest: &Digest, size: u64) -> Result<()> {
        self.check_whole()?;
        let algorithm = digest.algorithm().as_str();
        if !self.dirs.contains(&algorithm) {
            self.dirs.push(algorithm);
            self.put_slice(&tar::dir_header(&format!("blobs/{algorithm}"))).await?;
        }
        self.put_slice(&tar::file_header(&blob_path(digest), size)).await?;
        self.blob = Some((digest.clone(), size));
        Ok(())
    }

    /// The next piece of the blob.
    ///
    /// # Errors
    /// DataLoss when the blob gets longer than was said.
    pub async fn piece(&mut self, piece: Bytes) -> Result<()> {
        let len = piece.len() as u64;
        let blob = self.blob.as_mut().ok_or_else(|| Error::internal("a piece of no blob"));
        let (digest, left) = blob?;
        *left = left.checked_sub(len).ok_or_else(|| {
            Error::data_loss(format!("content {digest}: it is longer than its record says"))
        })?;
        let whole = *left == 0;
        self.put(piece).await?;
        if whole { self.pad().await } else { Ok(()) }
    }

    /// Ends the archive: its index, for docker as well unless `docker` is empty. Returns how many bytes
    /// it has.
    ///
    /// # Errors
    /// DataLoss when the last blob is not whole.
    pub async fn finish(
        mut self,
        manifests: Vec<Descriptor>,
        docker: &[ArchivedImage],
    ) -> Result<u64> {
        self.check_whole()?;
        self.file("index.json", &encode(&Index::over(manifests))?).await?;
        if !docker.is_empty() {
            self.file("manifest.json", &encode(&docker)?).await?;
        }
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).await?;
        self.put_slice(&tar::END).await?;
        self.out.flush().await?;
        Ok(self.size)
    }

    fn check_whole(&self) -> Result<()> {
        match &self.blob {
            Some((digest, left)) if *left > 0 => {
                Err(Error::data_loss(format!("content {digest}: it is cut short")))
            }
            _ => Ok(()),
        }
    }

    async fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.put_slice(&tar::file_header(name, bytes.len() as u64)).await?;
        self.put_slice(bytes).await?;
        self.pad().await
    }

    /// Fills up the block that a member ended in: headers are whole blocks.
    async fn pad(&mut self) -> Result<()> {
        self.put_slice(tar::padding(self.size)).await
    }

    async fn put_slice(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(Bytes::copy_from_slice(bytes)).await
    }

    async fn put(&mut self, bytes: Bytes) -> Result<()> {
        self.size += bytes.len() as u64;
        self.out.put(bytes).await
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|e| Error::internal(format!("encode an archive's index: {e}")))
}
