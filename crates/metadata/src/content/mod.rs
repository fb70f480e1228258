//! Content by namespace: records over the un-namespaced backend.
//!
//! A blob is on disk once, whoever holds it. A namespace holds it by a record; the index
//! `blob-namespace` tells who holds what, so that the last record to go puts the blob into the
//! trash for the collector.

mod open;
pub(crate) mod settle;
mod writer;

use std::collections::HashMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use gantry_content::{Reader, Status, WriterOptions};
use gantry_core::{Context, Digest, Labels, Namespace, fieldmask, filters, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::KvRead;

use crate::db::{Db, Tx, check_lease, encode, now};
use crate::event::Event;
use crate::filter::IngestView;
use crate::gc::Node;
use crate::keys::{self, Kind};
use crate::records::{BlobRecord, IngestRecord, decode, nanos, stored_digest, time};
use crate::types::ContentInfo;

pub(crate) use open::OpenIngests;
pub use writer::ContentWriter;
pub(crate) use writer::{INGEST_KEPT, blob_name, ingest_name, put_ingest};

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
        Ok(read(&self.db.view()?, ctx, digest)?.into_info(digest.clone()))
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
        labels::validate_all(&labels)?;
        let (ctx, digest) = (ctx.clone(), digest.clone());
        let fieldpaths = label_paths(fieldpaths);
        self.db
            .write(move |tx| {
                let mut record = read(tx.txn, &ctx, &digest)?;
                let what = format!("content {digest}");
                let mask = fieldmask::parse(&what, &fieldpaths, &[], &["labels"])?;
                fieldmask::merge_map(&mut record.labels, "labels", &mask, &labels);
                record.updated_at = nanos(now());
                tx.txn.put(&key(&ctx, &digest), encode(&record));
                tx.touch(|| Node::content(&ctx.namespace, &digest));
                Ok(record.into_info(digest))
            })
            .await
    }

    /// The blobs that match any of `filters` (fields digest, size, labels), by digest.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<ContentInfo>> {
        let filter = filters::parse_all(filters)?;
        let blobs = keys::within(Kind::Blob, &ctx.namespace);
        self.db
            .read(move |view| {
                let mut found = Vec::new();
                view.scan(&blobs, &mut |key, value| {
                    let [_, digest] = keys::parts(key)?;
                    let record: BlobRecord = decode(value, &format!("content {digest}"))?;
                    let info = record.into_info(stored_digest(&digest)?);
                    if filter.matches(&info) {
                        found.push(info);
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                Ok(found)
            })
            .await
    }

    /// Takes a blob out of the namespace; its bytes go with the next collection. Publishes
    /// `/content/delete`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, digest: &Digest) -> Result<()> {
        let (ctx, digest) = (ctx.clone(), digest.clone());
        self.db
            .write(move |tx| {
                read(tx.txn, &ctx, &digest)?;
                remove(tx, &ctx.namespace, digest.as_str())?;
                tx.lease_drop(&ctx, "content", digest.as_str());
                tx.emit(&ctx.namespace, Event::ContentDelete { digest: digest.into() });
                Ok(())
            })
            .await
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// NotFound.
    pub async fn reader(&self, ctx: &Context, digest: &Digest) -> Result<Box<dyn Reader>> {
        read(&self.db.view()?, ctx, digest)?;
        self.db.shared.content.reader(digest).await
    }

    /// Reads blobs of at most `len_max` bytes whole; what is not there or larger is left out.
    ///
    /// # Errors
    /// The backend's.
    pub async fn read_small(
        &self,
        ctx: &Context,
        digests: Vec<Digest>,
        len_max: u64,
    ) -> Result<Vec<(Digest, Bytes)>> {
        let view = self.db.view()?;
        let mut there = Vec::with_capacity(digests.len());
        for digest in digests {
            if view.has(&key(ctx, &digest))? {
                there.push(digest);
            }
        }
        drop(view);
        let read = self.db.shared.content.read_small(&there, len_max).await?;
        Ok(there.into_iter().zip(read).filter_map(|(d, bytes)| Some((d, bytes?))).collect())
    }

    /// Opens or resumes an ingest. The ingest joins the context's lease, or expires after a day.
    ///
    /// # Errors
    /// InvalidArgument for an empty reference; AlreadyExists when `options.expected` is in the
    /// namespace already (the lease gains it); Unavailable `ref ... locked for ...` while
    /// another writer holds the reference; NotFound for a missing lease.
    pub async fn writer(&self, ctx: &Context, options: WriterOptions) -> Result<ContentWriter> {
        if options.reference.is_empty() {
            return Err(Error::invalid_argument("content ref must not be empty"));
        }
        check_lease(&self.db.view()?, ctx)?;
        if let Some(expected) = &options.expected {
            refuse_existing(&self.db, ctx, expected).await?;
        }
        ContentWriter::open(&self.db, ctx, options).await
    }

    /// What is known of an ingest; its reference as the client gave it.
    ///
    /// # Errors
    /// NotFound.
    pub async fn status(&self, ctx: &Context, reference: &str) -> Result<Status> {
        let backend = &self.db.shared.content;
        if let Some(open) = self.db.shared.ingests.get(ctx, reference) {
            let stored = backend.status(&open.backend_ref).await.ok();
            return Ok(open.overlay(reference, stored));
        }
        let record = read_ingest(&self.db.view()?, ctx, reference)?
            .ok_or_else(|| missing_ingest(reference))?;
        let stored = match backend.status(&record.backend_ref).await {
            Err(err) if !record.shared => return Err(renamed(err, reference)),
            stored => stored.ok(),
        };
        Ok(overlay(reference, &record, stored))
    }

    /// The ingests that match any of `filters` (field ref), by reference.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn statuses(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Status>> {
        let filter = filters::parse_all(filters)?;
        let stored = self.db.shared.content.statuses().await?;
        let mut stored: HashMap<String, Status> =
            stored.into_iter().map(|s| (s.reference.clone(), s)).collect();
        let mut found = std::collections::BTreeMap::new();
        let ingests = keys::within(Kind::Ingest, &ctx.namespace);
        self.db.view()?.scan(&ingests, &mut |key, value| {
            let [_, reference] = keys::parts(key)?;
            let record: IngestRecord = decode(value, &format!("ingest ref {reference:?}"))?;
            let status = stored.get(&record.backend_ref).cloned();
            if record.shared || status.is_some() {
                found.insert(reference.clone(), overlay(&reference, &record, status));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (reference, open) in self.db.shared.ingests.of_namespace(ctx.namespace.as_str()) {
            let status = open.overlay(&reference, stored.remove(&open.backend_ref));
            found.insert(reference, status);
        }
        Ok(found.into_values().filter(|s| filter.matches(&IngestView(s))).collect())
    }

    /// Drops an ingest and its bytes.
    ///
    /// # Errors
    /// NotFound.
    pub async fn abort(&self, ctx: &Context, reference: &str) -> Result<()> {
        let db = self.db.clone();
        let (ctx, reference) = (ctx.clone(), reference.to_owned());
        // To its end even when the caller goes away half way.
        crate::db::detached(async move { abort(&db, &ctx, &reference).await }).await
    }
}

async fn abort(db: &Db, ctx: &Context, reference: &str) -> Result<()> {
    let open = db.shared.ingests.get(ctx, reference);
    let record = read_ingest(&db.view()?, ctx, reference)?;
    if open.is_none() && record.is_none() {
        return Err(missing_ingest(reference));
    }
    if let Some(open) = &open {
        open.mark_aborted();
        db.shared.ingests.close(ctx, reference, open);
    }
    let opened = open.map(|o| o.backend_ref.clone());
    let recorded = record.map(|r| r.backend_ref);
    let backend_refs: Vec<String> = opened.into_iter().chain(recorded).collect();
    // Whether or not a record was seen above: a writer that is being let go writes one, before this
    // or, as it is marked by now, not at all.
    let (ctx, reference) = (ctx.clone(), reference.to_owned());
    db.write(move |tx| {
        if let Some(record) = read_ingest(tx.txn, &ctx, &reference)? {
            remove_ingest(tx, &ctx.namespace, &reference, &record);
            tx.lease_drop(&ctx, "ingests", &reference);
        }
        Ok(())
    })
    .await?;
    for backend_ref in backend_refs {
        match db.shared.content.abort(&backend_ref).await {
            Err(err) if !err.is_not_found() => return Err(err),
            _ => {}
        }
    }
    Ok(())
}

fn key(ctx: &Context, digest: &Digest) -> gantry_store::Key {
    keys::object(Kind::Blob, &ctx.namespace, digest.as_str())
}

pub(super) fn read(read: &impl KvRead, ctx: &Context, digest: &Digest) -> Result<BlobRecord> {
    match read.get(&key(ctx, digest))? {
        Some(value) => decode(&value, &format!("content {digest}")),
        None => Err(Error::not_found(format!("content {digest}"))),
    }
}

pub(super) fn read_ingest(
    read: &impl KvRead,
    ctx: &Context,
    reference: &str,
) -> Result<Option<IngestRecord>> {
    read.get(&keys::object(Kind::Ingest, &ctx.namespace, reference))?
        .map(|value| decode(&value, &format!("ingest ref {reference:?}")))
        .transpose()
}

/// AlreadyExists when the namespace holds `digest`; the lease gains it then.
pub(super) async fn refuse_existing(db: &Db, ctx: &Context, digest: &Digest) -> Result<()> {
    if !db.view()?.has(&key(ctx, digest))? {
        return Ok(());
    }
    if ctx.lease.is_none() {
        return Err(exists(digest));
    }
    let (tx_ctx, tx_digest) = (ctx.clone(), digest.clone());
    let still = db
        .write(move |tx| {
            let still = tx.txn.has(&key(&tx_ctx, &tx_digest))?;
            if still {
                tx.lease_add(&tx_ctx, "content", tx_digest.as_str())?;
            }
            Ok(still)
        })
        .await?;
    if still { Err(exists(digest)) } else { Ok(()) }
}

pub(super) fn exists(digest: &Digest) -> Error {
    Error::already_exists(format!("content {digest}"))
}

fn missing_ingest(reference: &str) -> Error {
    Error::not_found(format!("ingest ref {reference:?}"))
}

/// An error of the backend with the reference the client knows.
fn renamed(err: Error, reference: &str) -> Error {
    if err.is_not_found() { missing_ingest(reference) } else { err }
}

fn overlay(reference: &str, record: &IngestRecord, stored: Option<Status>) -> Status {
    let shared = record.shared.then_some(record.shared_size);
    let started_at = time(record.started_at);
    Status {
        reference: reference.to_owned(),
        offset: stored.as_ref().map(|s| s.offset).or(shared).unwrap_or(0),
        total: record.total,
        expected: record.expected.parse().ok(),
        started_at,
        updated_at: stored.map_or(started_at, |s| s.updated_at),
    }
}

/// The mask of an update of labels.
pub(crate) fn label_paths(fieldpaths: &[String]) -> Vec<String> {
    if fieldpaths.is_empty() { vec!["labels".to_owned()] } else { fieldpaths.to_vec() }
}

/// Takes the record of a blob out; the last one puts the blob into the trash.
pub(crate) fn remove(tx: &mut Tx<'_, '_>, namespace: &Namespace, digest: &str) -> Result<()> {
    tx.txn.delete(&keys::object(Kind::Blob, namespace, digest));
    tx.txn.delete(&keys::blob_namespace(digest, namespace));
    if tx.txn.first(&keys::all(Kind::BlobNamespace).str(digest))?.is_none() {
        tx.txn.put(&keys::all(Kind::TrashBlob).str(digest), Vec::new());
    }
    tx.dirty();
    Ok(())
}

/// Takes the record of an ingest out; its bytes go into the trash.
pub(crate) fn remove_ingest(
    tx: &mut Tx<'_, '_>,
    namespace: &Namespace,
    reference: &str,
    record: &IngestRecord,
) {
    tx.txn.delete(&keys::object(Kind::Ingest, namespace, reference));
    tx.txn.put(&keys::all(Kind::TrashIngest).str(&record.backend_ref), Vec::new());
    tx.dirty();
}

/// Takes out the ingests of a namespace that is being deleted.
pub(crate) fn drop_ingests(tx: &mut Tx<'_, '_>, namespace: &Namespace) -> Result<()> {
    for (key, value) in tx.txn.range(&keys::within(Kind::Ingest, namespace))? {
        let [_, reference] = keys::parts(&key)?;
        let record: IngestRecord = decode(&value, &format!("ingest ref {reference:?}"))?;
        remove_ingest(tx, namespace, &reference, &record);
    }
    Ok(())
}
