//! Content: immutable blobs named by digest, and the ingests that become blobs.
//!
//! [`Store`] is the interface the metadata layer builds namespaces on; [`LocalStore`] keeps blobs
//! as files. Nothing here knows namespaces, labels or leases.
//!
//! # Life of a blob
//! [`Store::writer`] opens an ingest under a reference of the caller's choice. One writer holds a
//! reference at a time; bytes written stay on disk when the writer is dropped, and the next
//! writer of the same reference goes on where they end. [`Writer::commit`] checks size and
//! digest, makes the bytes durable and turns the ingest into a blob, read-only from then on.
//! [`Store::delete`] takes a blob away; readers that are open keep reading.
#![forbid(unsafe_code)]

mod local;
#[cfg(feature = "testsuite")]
pub mod testsuite;

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_core::Digest;
use gantry_errdefs::{Error, Result};

pub use local::LocalStore;

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was committed.
    pub created_at: SystemTime,
    /// When it was last changed; equal to `created_at` in a backend without labels.
    pub updated_at: SystemTime,
}

/// What is known of an ingest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The reference it was opened under.
    pub reference: String,
    /// Bytes stored so far.
    pub offset: u64,
    /// Size expected at the end, in bytes; 0 when unknown.
    pub total: u64,
    /// Digest expected at the end, if the writer named one. Not kept across restarts.
    pub expected: Option<Digest>,
    /// When the first writer opened it.
    pub started_at: SystemTime,
    /// When bytes last arrived.
    pub updated_at: SystemTime,
}

/// How to open an ingest.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// The reference; any non-empty text.
    pub reference: String,
    /// Size expected at the end, in bytes; 0 when unknown.
    pub total: u64,
    /// Digest expected at the end. An existing blob of that digest refuses the ingest, and its
    /// algorithm is the one the bytes are hashed with.
    pub expected: Option<Digest>,
}

/// A store of blobs. Cheap to share behind an `Arc`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What is known of the blob `digest`.
    ///
    /// # Errors
    /// NotFound.
    async fn info(&self, digest: &Digest) -> Result<Info>;

    /// Opens the blob `digest` for reading.
    ///
    /// # Errors
    /// NotFound.
    async fn reader(&self, digest: &Digest) -> Result<Box<dyn Reader>>;

    /// Reads blobs of at most `len_max` bytes whole. The answers are in the order of `digests`;
    /// None for what is not there or larger.
    ///
    /// # Errors
    /// The I/O error.
    async fn read_small(&self, digests: &[Digest], len_max: u64) -> Result<Vec<Option<Bytes>>> {
        let mut read = Vec::with_capacity(digests.len());
        for digest in digests {
            read.push(match self.reader(digest).await {
                Ok(reader) if reader.size() <= len_max => {
                    let len = usize::try_from(reader.size()).unwrap_or(usize::MAX);
                    Some(reader.read_at(0, len).await?)
                }
                Ok(_) => None,
                Err(err) if err.is_not_found() => None,
                Err(err) => return Err(err),
            });
        }
        Ok(read)
    }

    /// Removes the blob `digest`; open readers keep reading.
    ///
    /// # Errors
    /// NotFound.
    async fn delete(&self, digest: &Digest) -> Result<()>;

    /// Calls `visit` for every blob, in no order; an error of `visit` ends the walk and is
    /// returned. Blobs that come or go meanwhile may or may not be seen.
    ///
    /// # Errors
    /// That of `visit`, or the I/O error.
    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()>;

    /// Opens or resumes the ingest `options.reference`.
    ///
    /// # Errors
    /// InvalidArgument for an empty reference; AlreadyExists when `options.expected` is a blob
    /// already; Unavailable `ref X locked for ...` while another writer holds it.
    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>>;

    /// What is known of one ingest.
    ///
    /// # Errors
    /// NotFound.
    async fn status(&self, reference: &str) -> Result<Status>;

    /// Every ingest, in no order.
    ///
    /// # Errors
    /// The I/O error.
    async fn statuses(&self) -> Result<Vec<Status>>;

    /// Drops an ingest and its bytes. A writer that still holds it fails at its next call.
    ///
    /// # Errors
    /// NotFound.
    async fn abort(&self, reference: &str) -> Result<()>;

    /// Makes blobs durable that [`Writer::commit_deferred`] left to the caller. One that has been
    /// deleted meanwhile is no error.
    ///
    /// # Errors
    /// The I/O error; the caller then keeps the bytes.
    async fn settle(&self, _digests: &[Digest]) -> Result<()> {
        Ok(())
    }

    /// Makes blobs durably be there with these bytes, whatever a power cut left of them.
    ///
    /// # Errors
    /// The I/O error; Unimplemented for a store that never defers.
    async fn restore(&self, _blobs: Vec<(Digest, Bytes)>) -> Result<()> {
        Err(Error::unimplemented("content: restore"))
    }
}

/// A blob open for reading.
#[async_trait]
pub trait Reader: Send + Sync {
    /// Size of the blob in bytes.
    fn size(&self) -> u64;

    /// Reads up to `len` bytes at `offset`; fewer only at the end of the blob, none past it.
    ///
    /// # Errors
    /// The I/O error.
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes>;

    /// The blob as a blocking stream from its first byte, for decompressors and the like that
    /// run in `spawn_blocking`.
    fn into_blocking(self: Box<Self>) -> Box<dyn std::io::Read + Send>;
}

/// An ingest open for writing. Dropping it frees the reference and keeps the bytes.
#[async_trait]
pub trait Writer: Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// The I/O error (ResourceExhausted when the disk is full); NotFound when the ingest was
    /// aborted meanwhile.
    async fn write(&mut self, data: Bytes) -> Result<()>;

    /// The state of the ingest, bytes written through this writer included.
    fn status(&self) -> Status;

    /// Digest of all bytes stored so far.
    fn digest(&self) -> Digest;

    /// Cuts the ingest to its first `size` bytes.
    ///
    /// # Errors
    /// InvalidArgument when fewer than `size` bytes are stored; the I/O error.
    async fn truncate(&mut self, size: u64) -> Result<()>;

    /// Turns the ingest into a blob, durable when this returns, and returns its digest. `size` is
    /// checked unless 0, `expected` unless `None`. On failure the reference is free again and the
    /// bytes are kept, except for AlreadyExists.
    ///
    /// # Errors
    /// FailedPrecondition for another size or digest; AlreadyExists when the blob exists (the
    /// ingest is dropped); NotFound when the ingest was aborted meanwhile.
    async fn commit(self: Box<Self>, size: u64, expected: Option<&Digest>) -> Result<Digest>;

    /// As [`Writer::commit`], except that a small blob may not be durable yet. Its bytes are then
    /// returned, and the caller keeps them somewhere durable until [`Store::settle`] has taken
    /// over, to [`Store::restore`] the blob with after a power cut. A caller that commits a record
    /// of the blob anyway thus saves the syncs of the file and of its directory.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    async fn commit_deferred(
        self: Box<Self>,
        size: u64,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Option<Bytes>)> {
        Ok((self.commit(size, expected).await?, None))
    }
}
