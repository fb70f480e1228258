//! Content by namespace.
#![allow(clippy::todo, unused_variables)]

use bytes::Bytes;
use gantry_content::{Reader, Status, WriterOptions};
use gantry_core::{Context, Digest, Labels, Namespace};
use gantry_errdefs::Result;

use crate::db::{Db, Tx};
use crate::types::ContentInfo;

/// Ingests with an open writer.
#[derive(Debug, Default)]
pub(crate) struct OpenIngests {}

/// The blobs and ingests of the store, as each namespace sees them.
#[derive(Clone, Debug)]
pub struct Content {
    db: Db,
}

impl Content {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    /// What the namespace knows of a blob.
    ///
    /// # Errors
    /// NotFound.
    pub async fn info(&self, ctx: &Context, digest: &Digest) -> Result<ContentInfo> {
        todo!()
    }

    /// Changes labels of a blob. `fieldpaths` are `labels` and `labels.<key>`; none is `labels`.
    /// An empty value deletes a label. No event.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for another field path or a bad label.
    pub async fn update(
        &self,
        ctx: &Context,
        digest: &Digest,
        labels: Labels,
        fieldpaths: &[String],
    ) -> Result<ContentInfo> {
        todo!()
    }

    /// The blobs that match any of `filters` (fields digest, size, labels), by digest.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<ContentInfo>> {
        todo!()
    }

    /// Takes a blob out of the namespace; its bytes go with the next collection. Publishes
    /// `/content/delete`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, digest: &Digest) -> Result<()> {
        todo!()
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// NotFound.
    pub async fn reader(&self, ctx: &Context, digest: &Digest) -> Result<Box<dyn Reader>> {
        todo!()
    }

    /// Opens or resumes an ingest. The ingest joins the context's lease, or expires after a day.
    ///
    /// # Errors
    /// InvalidArgument for an empty reference; AlreadyExists when `options.expected` is in the
    /// namespace already (the lease gains it); Unavailable `ref ... locked for ...` while
    /// another writer holds the reference; NotFound for a missing lease.
    pub async fn writer(&self, ctx: &Context, options: WriterOptions) -> Result<ContentWriter> {
        todo!()
    }

    /// What is known of an ingest; its reference as the client gave it.
    ///
    /// # Errors
    /// NotFound.
    pub async fn status(&self, ctx: &Context, reference: &str) -> Result<Status> {
        todo!()
    }

    /// The ingests that match any of `filters` (field ref), by reference.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn statuses(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Status>> {
        todo!()
    }

    /// Drops an ingest and its bytes.
    ///
    /// # Errors
    /// NotFound.
    pub async fn abort(&self, ctx: &Context, reference: &str) -> Result<()> {
        todo!()
    }
}

/// An ingest open for writing. Dropping it frees the reference and keeps the bytes.
#[derive(Debug)]
pub struct ContentWriter {}

impl ContentWriter {
    /// Tells the size or digest expected, learnt after opening (0 and `None` tell nothing).
    ///
    /// # Errors
    /// AlreadyExists when the digest is in the namespace by now: the ingest is dropped, the
    /// lease gains the blob, and this writer is of no further use.
    pub async fn expect(&mut self, total: u64, expected: Option<&Digest>) -> Result<()> {
        todo!()
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// As [`gantry_content::Writer::write`].
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        todo!()
    }

    /// The state of the ingest; its reference as the client gave it.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Digest of all bytes stored so far.
    pub fn digest(&self) -> Digest {
        todo!()
    }

    /// Cuts the ingest to its first `size` bytes.
    ///
    /// # Errors
    /// As [`gantry_content::Writer::truncate`].
    pub async fn truncate(&mut self, size: u64) -> Result<()> {
        todo!()
    }

    /// Turns the ingest into a blob of the namespace, durable when this returns. `size` is
    /// checked unless 0, `expected` unless `None`. Publishes `/content/create`. On failure the
    /// reference is free again and the bytes are kept, except for AlreadyExists.
    ///
    /// # Errors
    /// InvalidArgument for a bad label; FailedPrecondition for another size or digest;
    /// AlreadyExists when the blob is in the namespace (the lease gains it).
    pub async fn commit(
        self,
        size: u64,
        expected: Option<&Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        todo!()
    }
}

/// Takes out the ingests of a namespace that is being deleted.
pub(crate) fn drop_ingests(tx: &mut Tx<'_, '_>, namespace: &Namespace) -> Result<()> {
    todo!()
}
