//! The writer of an ingest in a namespace.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gantry_content::{Status, Writer, WriterOptions};
use gantry_core::{Context, Digest, Labels, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::{KvRead, Snapshot};

use super::open::{Facts, OpenIngest};
use super::{exists, key, missing_ingest, read_ingest, refuse_existing, settle};
use crate::db::{Db, Tx, check_lease, detached, encode, now};
use crate::event::Event;
use crate::gc::Node;
use crate::inflight::Guard;
use crate::keys::{self, Kind};
use crate::namespaces;
use crate::records::{BlobRecord, IngestRecord, nanos, time};
use crate::types::SharingPolicy;

/// How long an ingest without a lease is kept after its writer was let go.
pub(crate) const INGEST_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The label by which a namespace shares its blobs under [`SharingPolicy::Isolated`].
const LABEL_SHAREABLE: &str = "containerd.io/namespace.shareable";

/// Bytes copied at once when a shared blob becomes an ingest of its own.
const COPY_LEN: usize = 1 << 20;

/// An ingest open for writing. Dropping it frees the reference and keeps the bytes.
pub struct ContentWriter {
    /// None once committed or aborted.
    ingest: Option<Ingest>,
}

struct Ingest {
    db: Db,
    ctx: Context,
    reference: String,
    open: Arc<OpenIngest>,
    source: Source,
    /// Keeps the collector away from the backend's ingest.
    _used: Guard,
}

/// Where the bytes of an ingest are.
enum Source {
    /// In an ingest of the backend.
    Own(Box<dyn Writer>),
    /// In a blob that another namespace shares; the guard keeps it there.
    Shared { digest: Digest, size: u64, _used: Guard },
    /// The backend failed while one became the other.
    Lost,
}

impl ContentWriter {
    pub(super) async fn open(db: &Db, ctx: &Context, options: WriterOptions) -> Result<Self> {
        let reference = options.reference.clone();
        db.shared.ingests.settle(ctx, &reference).await?;
        let view = db.view()?;
        let record = read_ingest(&view, ctx, &reference)?;
        let backend_ref = match &record {
            Some(record) => record.backend_ref.clone(),
            None => format!("{}/{}/{reference}", ctx.namespace, db.next_number().await?),
        };
        let recorded_total = record.as_ref().map_or(0, |r| r.total);
        let facts = Facts {
            total: if options.total > 0 { options.total } else { recorded_total },
            expected: options
                .expected
                .clone()
                .or_else(|| record.as_ref().and_then(|r| r.expected.parse().ok())),
            started_at: record.as_ref().map_or_else(SystemTime::now, |r| time(r.started_at)),
            shared: None,
        };
        let open = db.shared.ingests.lock(ctx, &reference, backend_ref.clone(), facts).await?;
        // From here on dropping the ingest frees the reference, whatever fails.
        let mut ingest = Ingest {
            db: db.clone(),
            ctx: ctx.clone(),
            reference,
            open,
            source: Source::Lost,
            _used: db.shared.inflight.enter(&ingest_name(&backend_ref)).await,
        };
        let fresh = record.as_ref().is_none_or(|r| r.shared);
        ingest.source = open_bytes(db, &ingest.open, fresh).await?;
        Ok(Self { ingest: Some(ingest) })
    }

    /// Tells the size or digest expected, learnt after opening (0 and `None` tell nothing).
    ///
    /// # Errors
    /// AlreadyExists when the digest is in the namespace by now: the ingest is dropped, the
    /// lease gains the blob, and this writer is of no further use.
    pub async fn expect(&mut self, total: u64, expected: Option<&Digest>) -> Result<()> {
        let ingest = self.ingest_mut()?;
        // Clones, for a writer may move between threads but not be shared by them.
        let (db, ctx, open) = (ingest.db.clone(), ingest.ctx.clone(), Arc::clone(&ingest.open));
        if let Some(expected) = expected
            && let Err(err) = refuse_existing(&db, &ctx, expected).await
        {
            if err.is_already_exists()
                && let Some(ingest) = self.ingest.take()
            {
                ingest.abort().await?;
            }
            return Err(err);
        }
        let mut facts = open.facts();
        if total > 0 {
            facts.total = total;
        }
        if let Some(expected) = expected {
            facts.expected = Some(expected.clone());
        }
        Ok(())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// As [`gantry_content::Writer::write`].
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        let ingest = self.ingest_mut()?;
        ingest.own(u64::MAX).await?.write(data).await
    }

    /// The state of the ingest; its reference as the client gave it.
    pub fn status(&self) -> Status {
        match &self.ingest {
            Some(ingest) => {
                let stored = match &ingest.source {
                    Source::Own(writer) => Some(writer.status()),
                    Source::Shared { .. } | Source::Lost => None,
                };
                ingest.open.overlay(&ingest.reference, stored)
            }
            None => Status {
                reference: String::new(),
                offset: 0,
                total: 0,
                expected: None,
                started_at: SystemTime::UNIX_EPOCH,
                updated_at: SystemTime::UNIX_EPOCH,
            },
        }
    }

    /// Digest of all bytes stored so far.
    pub fn digest(&self) -> Digest {
        match self.ingest.as_ref().map(|ingest| &ingest.source) {
            Some(Source::Own(writer)) => writer.digest(),
            Some(Source::Shared { digest, .. }) => digest.clone(),
            Some(Source::Lost) | None => Digest::of(b""),
        }
    }

    /// Cuts the ingest to its first `size` bytes.
    ///
    /// # Errors
    /// As [`gantry_content::Writer::truncate`].
    pub async fn truncate(&mut self, size: u64) -> Result<()> {
        let ingest = self.ingest_mut()?;
        if let Source::Shared { size: have, .. } = &ingest.source
            && size > *have
        {
            let text = format!("ref {:?}: truncating {have} bytes to {size}", ingest.reference);
            return Err(Error::invalid_argument(text));
        }
        ingest.own(size).await?.truncate(size).await
    }

    /// Turns the ingest into a blob of the namespace, durable when this returns. `size` is
    /// checked unless 0, `expected` unless `None`. Publishes `/content/create`. On failure the
    /// reference is free again and the bytes are kept, except for AlreadyExists.
    ///
    /// # Errors
    /// InvalidArgument for a bad label; FailedPrecondition for another size or digest;
    /// AlreadyExists when the blob is in the namespace (the lease gains it).
    pub async fn commit(
        mut self,
        size: u64,
        expected: Option<&Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        let ingest = self.ingest.take().ok_or_else(|| missing_ingest(""))?;
        let expected = expected.cloned();
        // To its end even when the caller goes away half way.
        detached(ingest.commit(size, expected, labels)).await
    }

    fn ingest_mut(&mut self) -> Result<&mut Ingest> {
        let ingest = self.ingest.as_mut().ok_or_else(|| missing_ingest(""))?;
        if ingest.open.is_aborted() {
            return Err(missing_ingest(&ingest.reference));
        }
        Ok(ingest)
    }
}

impl Drop for ContentWriter {
    fn drop(&mut self) {
        let Some(ingest) = self.ingest.take() else { return };
        ingest.open.begin_close();
        // Without a runtime the process is ending; the next start adopts the ingest.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(ingest.release());
        }
    }
}

impl std::fmt::Debug for ContentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentWriter").field("status", &self.status()).finish()
    }
}

impl Ingest {
    /// The backend's writer. Bytes that were shared so far are copied, up to `keep` of them.
    async fn own(&mut self, keep: u64) -> Result<&mut Box<dyn Writer>> {
        if let Source::Shared { digest, size, .. } = &self.source {
            let (digest, keep) = (digest.clone(), keep.min(*size));
            let total = self.open.facts().total;
            let content = &self.db.shared.content;
            let reference = self.open.backend_ref.clone();
            let options = WriterOptions { reference, total, expected: None };
            let mut writer = content.writer(options).await?;
            writer.truncate(0).await?;
            let reader = content.reader(&digest).await?;
            let mut offset = 0;
            while offset < keep {
                let len = usize::try_from(keep - offset).map_or(COPY_LEN, |n| n.min(COPY_LEN));
                let piece = reader.read_at(offset, len).await?;
                if piece.is_empty() {
                    return Err(Error::data_loss(format!("content {digest} is cut short")));
                }
                offset += piece.len() as u64;
                writer.write(piece).await?;
            }
            self.open.facts().shared = None;
            self.source = Source::Own(writer);
        }
        match &mut self.source {
            Source::Own(writer) => Ok(writer),
            Source::Shared { .. } | Source::Lost => {
                Err(Error::internal(format!("ref {:?}: its writer is gone", self.reference)))
            }
        }
    }

    async fn commit(
        mut self,
        size: u64,
        expected: Option<Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        let mut spent = false;
        let result = self.try_commit(size, expected, labels, &mut spent).await;
        match &result {
            Ok(_) => self.close(),
            Err(err) if spent || err.is_already_exists() => self.abort().await?,
            Err(_) => self.release().await,
        }
        result
    }

    /// Sets `spent` once the backend has no ingest any more. A record of it would then name
    /// nothing that anyone can list, and hold the blob when it is fetched again.
    async fn try_commit(
        &mut self,
        size: u64,
        expected: Option<Digest>,
        labels: Labels,
        spent: &mut bool,
    ) -> Result<Digest> {
        labels::validate_all(&labels)?;
        if self.open.is_aborted() {
            return Err(missing_ingest(&self.reference));
        }
        check_lease(&self.db.view()?, &self.ctx)?;
        let facts = self.open.facts().clone();
        let expected = expected.or(facts.expected);
        let size = if size > 0 { size } else { facts.total };
        if let Some(expected) = &expected {
            refuse_existing(&self.db, &self.ctx, expected).await?;
        }
        let (digest, size, used, bytes) = match std::mem::replace(&mut self.source, Source::Lost) {
            Source::Shared { digest, size: have, _used } => {
                check_shared(&self.reference, have, size, &digest, expected.as_ref())?;
                (digest, have, _used, None)
            }
            Source::Own(writer) => {
                let committed = self.commit_own(writer, size, expected.as_ref()).await?;
                *spent = true;
                committed
            }
            Source::Lost => return Err(missing_ingest(&self.reference)),
        };
        let recorded = self.record(&digest, size, labels, bytes).await;
        drop(used);
        if let Err(err) = &recorded
            && !err.is_already_exists()
        {
            // The bytes are a blob without a record now.
            self.db.gc().discard_blob(&digest).await;
        }
        recorded?;
        Ok(digest)
    }

    /// Makes the backend's ingest a blob; the guard keeps it until it has a record. Bytes that come
    /// back are durable only with that record.
    async fn commit_own(
        &mut self,
        writer: Box<dyn Writer>,
        size: u64,
        expected: Option<&Digest>,
    ) -> Result<(Digest, u64, Guard, Option<Bytes>)> {
        let digest = expected.cloned().unwrap_or_else(|| writer.digest());
        let used = self.db.shared.inflight.enter(&blob_name(digest.as_str())).await;
        let have = writer.status().offset;
        match writer.commit_deferred(size, expected).await {
            Ok((digest, bytes)) => Ok((digest, have, used, bytes)),
            // Another namespace has it, or had: the blob is there, and the same.
            Err(err) if err.is_already_exists() => Ok((digest, have, used, None)),
            Err(err) => Err(err),
        }
    }

    async fn record(
        &mut self,
        digest: &Digest,
        size: u64,
        labels: Labels,
        bytes: Option<Bytes>,
    ) -> Result<()> {
        let (ctx, digest) = (self.ctx.clone(), digest.clone());
        let reference = self.reference.clone();
        let bytes = match bytes {
            Some(bytes) => Some((self.db.next_number().await?, bytes)),
            None => None,
        };
        let made = {
            let digest = digest.clone();
            self.db
                .write(move |tx| {
                    if read_ingest(tx.txn, &ctx, &reference)?.is_some() {
                        tx.txn.delete(&keys::object(Kind::Ingest, &ctx.namespace, &reference));
                    }
                    tx.lease_drop(&ctx, "ingests", &reference);
                    tx.lease_add(&ctx, "content", digest.as_str())?;
                    if tx.txn.has(&key(&ctx, &digest))? {
                        return Ok(false);
                    }
                    put(tx, &ctx, &digest, size, labels)?;
                    if let Some((number, bytes)) = bytes {
                        settle::keep(tx, &digest, number, &bytes);
                    }
                    Ok(true)
                })
                .await?
        };
        if made { Ok(()) } else { Err(exists(&digest)) }
    }

    /// Drops the ingest: its blob exists, or the client wants it gone.
    async fn abort(self) -> Result<()> {
        let (db, ctx, reference) = (self.db.clone(), self.ctx.clone(), self.reference.clone());
        match super::abort(&db, &ctx, &reference).await {
            Err(err) if !err.is_not_found() => Err(err),
            _ => Ok(()),
        }
    }

    /// Lets the ingest go, resumable: writes its record, then frees the reference.
    async fn release(mut self) {
        self.open.begin_close();
        // Closes the backend's writer, which flushes what it gathered.
        self.source = Source::Lost;
        if !self.open.is_aborted()
            && let Err(err) = self.write_record().await
        {
            tracing::warn!(reference = self.reference, "keeping an ingest: {err}");
        }
        self.close();
    }

    async fn write_record(&mut self) -> Result<()> {
        let facts = self.open.facts().clone();
        let mut record = IngestRecord {
            backend_ref: self.open.backend_ref.clone(),
            expected: facts.expected.map(String::from).unwrap_or_default(),
            expires_at: 0,
            total: facts.total,
            started_at: nanos(facts.started_at),
            shared: facts.shared.is_some(),
            shared_size: facts.shared.unwrap_or(0),
        };
        let (ctx, reference) = (self.ctx.clone(), self.reference.clone());
        let open = Arc::clone(&self.open);
        self.db
            .write(move |tx| {
                if open.is_aborted() {
                    return Ok(());
                }
                // A lease that has gone meanwhile takes nothing with it that it never held.
                let leased = ctx.lease.is_some() && tx.check_lease(&ctx).is_ok();
                if leased {
                    tx.lease_add(&ctx, "ingests", &reference)?;
                } else {
                    record.expires_at = nanos(now() + INGEST_KEPT);
                }
                tx.ensure_namespace(&ctx.namespace)?;
                put_ingest(tx, &ctx, &reference, &record);
                Ok(())
            })
            .await
    }

    fn close(&self) {
        self.db.shared.ingests.close(&self.ctx, &self.reference, &self.open);
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens the bytes of an ingest; a `fresh` one may stand for a blob that another namespace shares.
async fn open_bytes(db: &Db, open: &OpenIngest, fresh: bool) -> Result<Source> {
    let (backend_ref, facts) = (open.backend_ref.clone(), open.facts().clone());
    if fresh && let Some(expected) = &facts.expected {
        let used = db.shared.inflight.enter(&blob_name(expected.as_str())).await;
        // Looked up after the guard is held, so that the blob stays.
        // Whoever expects another size is wrong in one of the two, and finds out which by sending.
        if is_shared(&db.view()?, db.policy(), expected)?
            && let Ok(info) = db.shared.content.info(expected).await
            && (facts.total == 0 || facts.total == info.size)
        {
            open.facts().shared = Some(info.size);
            let digest = expected.clone();
            return Ok(Source::Shared { digest, size: info.size, _used: used });
        }
    }
    // The digest is checked at commit. Told to the backend now, it would refuse a blob that is
    // there for others, which this namespace may have to send all the same.
    let options = WriterOptions { reference: backend_ref, total: facts.total, expected: None };
    Ok(Source::Own(db.shared.content.writer(options).await?))
}

/// Whether another namespace shares the blob.
fn is_shared(view: &Snapshot, policy: SharingPolicy, digest: &Digest) -> Result<bool> {
    let holders = keys::all(Kind::BlobNamespace).str(digest.as_str());
    if policy == SharingPolicy::Shared {
        return Ok(view.first(&holders)?.is_some());
    }
    let mut shared = false;
    view.scan(&holders, &mut |key, _| {
        let [_, namespace] = keys::parts(key)?;
        let labels = namespaces::read(view, &namespace)?.unwrap_or_default().labels;
        shared = labels.get(LABEL_SHAREABLE).is_some_and(|value| value == "true");
        Ok(if shared { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(shared)
}

fn check_shared(
    reference: &str,
    have: u64,
    size: u64,
    digest: &Digest,
    expected: Option<&Digest>,
) -> Result<()> {
    if size > 0 && size != have {
        return Err(Error::failed_precondition(format!(
            "ref {reference}: unexpected commit size {have}, expected {size}"
        )));
    }
    match expected {
        Some(expected) if expected != digest => Err(Error::failed_precondition(format!(
            "ref {reference}: unexpected commit digest {digest}, expected {expected}"
        ))),
        _ => Ok(()),
    }
}

/// Records a blob that the backend has.
fn put(
    tx: &mut Tx<'_, '_>,
    ctx: &Context,
    digest: &Digest,
    size: u64,
    mut labels: Labels,
) -> Result<()> {
    labels.retain(|_, value| !value.is_empty());
    let at = nanos(now());
    let record = BlobRecord { size, created_at: at, updated_at: at, labels };
    tx.ensure_namespace(&ctx.namespace)?;
    tx.txn.put(&key(ctx, digest), encode(&record));
    tx.txn.put(&keys::blob_namespace(digest.as_str(), &ctx.namespace), Vec::new());
    tx.txn.delete(&keys::all(Kind::TrashBlob).str(digest.as_str()));
    tx.touch(|| Node::content(&ctx.namespace, digest));
    tx.emit(&ctx.namespace, Event::ContentCreate { digest: digest.as_str().to_owned(), size });
    Ok(())
}

/// Records an ingest that the backend has.
pub(crate) fn put_ingest(
    tx: &mut Tx<'_, '_>,
    ctx: &Context,
    reference: &str,
    record: &IngestRecord,
) {
    tx.txn.put(&keys::object(Kind::Ingest, &ctx.namespace, reference), encode(record));
    tx.touch(|| Node::resource(&ctx.namespace, "ingests", reference));
}

/// The name of a blob among what is in flight.
pub(crate) fn blob_name(digest: &str) -> String {
    format!("blob {digest}")
}

/// The name of an ingest among what is in flight.
pub(crate) fn ingest_name(backend_ref: &str) -> String {
    format!("ingest {backend_ref}")
}
