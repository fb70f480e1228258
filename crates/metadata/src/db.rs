//! The handle on the store, and the transaction wrapper all facades write through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use gantry_core::{Context, Labels, Namespace};
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;
use gantry_snapshots::{LayerOrigin, Snapshotter as Backend};
use gantry_store::{KvRead, Snapshot, Store, StoreExt, Txn, carry, strict};

use crate::containers::Containers;
use crate::content::settle::Unsettled;
use crate::content::{Content, OpenIngests};
use crate::event::{Event, EventSink, NoEvents};
use crate::gc::{self, Gc, GcConfig, GcState, Node};
use crate::images::Images;
use crate::inflight::Inflight;
use crate::keys::{self, Kind};
use crate::leases::Leases;
use crate::namespaces::Namespaces;
use crate::records::NamespaceRecord;
use crate::sandboxes::Sandboxes;
use crate::snapshots::{Applied, Snapshots};
use crate::types::SharingPolicy;
use crate::upkeep::Upkeep;

/// What a [`Db`] is made of.
pub struct Options {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The blobs.
    pub content: Arc<dyn gantry_content::Store>,
    /// The snapshotters by name.
    pub snapshotters: BTreeMap<String, Arc<dyn Backend>>,
    /// Who may share blobs.
    pub policy: SharingPolicy,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// When to collect garbage.
    pub gc: GcConfig,
}

impl Options {
    /// Options with the defaults: shared content, no snapshotters, no events.
    pub fn new(store: Arc<dyn Store>, content: Arc<dyn gantry_content::Store>) -> Self {
        Self {
            store,
            content,
            snapshotters: BTreeMap::new(),
            policy: SharingPolicy::default(),
            events: Arc::new(NoEvents),
            gc: GcConfig::default(),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("snapshotters", &self.snapshotters.keys())
            .field("policy", &self.policy)
            .field("gc", &self.gc)
            .finish_non_exhaustive()
    }
}

/// The metadata store. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Db {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) content: Arc<dyn gantry_content::Store>,
    pub(crate) snapshotters: BTreeMap<String, Arc<dyn Backend>>,
    pub(crate) policy: SharingPolicy,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) gc: GcState,
    /// Backend objects that are being made or taken away right now.
    pub(crate) inflight: Inflight,
    /// Ingests with an open writer.
    pub(crate) ingests: OpenIngests,
    /// Layers that clients have had unpacked and not yet committed.
    pub(crate) applied: Applied,
    /// Small blobs whose bytes are kept. Behind an `Arc` so that the settling task does not keep
    /// the store.
    pub(crate) unsettled: Arc<Unsettled>,
    /// Numbers for backend names; see [`Db::next_number`].
    numbers: Numbers,
}

#[derive(Default)]
struct Numbers {
    next: AtomicU64,
    /// First number that is not reserved in the database; the lock serialises reservations.
    reserved: tokio::sync::Mutex<u64>,
    reserved_shown: AtomicU64,
}

/// Numbers reserved by one write. They are lost at an unclean end, so a gap of a thousand names
/// at each; a `u64` has room for that.
const NUMBERS_BLOCK_LEN: u64 = 1000;

impl Db {
    /// Opens the store. Nothing runs by itself until [`Gc::start`].
    ///
    /// # Errors
    /// DataLoss when the database can't be read.
    pub fn open(options: Options) -> Result<Self> {
        let stored = options.store.view()?.get(&keys::all(Kind::Sequence))?;
        let next = stored.map(|v| decode_number(&v)).transpose()?.unwrap_or(1);
        let shared = Shared {
            store: options.store,
            content: options.content,
            snapshotters: options.snapshotters,
            policy: options.policy,
            events: options.events,
            gc: GcState::new(options.gc),
            inflight: Inflight::default(),
            ingests: OpenIngests::default(),
            applied: Applied::default(),
            unsettled: Arc::default(),
            numbers: Numbers {
                next: AtomicU64::new(next),
                reserved: tokio::sync::Mutex::new(next),
                reserved_shown: AtomicU64::new(next),
            },
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Namespaces.
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::new(self.clone())
    }

    /// Containers.
    pub fn containers(&self) -> Containers {
        Containers::new(self.clone())
    }

    /// Images.
    pub fn images(&self) -> Images {
        Images::new(self.clone())
    }

    /// Leases.
    pub fn leases(&self) -> Leases {
        Leases::new(self.clone())
    }

    /// Sandboxes.
    pub fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.clone())
    }

    /// Content by namespace.
    pub fn content(&self) -> Content {
        Content::new(self.clone())
    }

    /// Snapshots by namespace, on one snapshotter.
    ///
    /// # Errors
    /// InvalidArgument when there is no snapshotter of that name.
    pub fn snapshotter(&self, name: &str) -> Result<Snapshots> {
        match self.shared.snapshotters.get(name) {
            Some(backend) => Ok(Snapshots::new(self.clone(), name, Arc::clone(backend))),
            None => Err(Error::invalid_argument(format!("snapshotter not loaded: {name}"))),
        }
    }

    /// Names of the snapshotters.
    pub fn snapshotter_names(&self) -> Vec<String> {
        self.shared.snapshotters.keys().cloned().collect()
    }

    /// Tells the names of all namespaces whenever it is called, for backends that keep what is
    /// theirs by namespace. It does not hold the store open.
    pub fn namespace_names(&self) -> impl Fn() -> Result<Vec<Namespace>> + Send + Sync + 'static {
        let shared = Arc::downgrade(&self.shared);
        move || {
            let Some(shared) = shared.upgrade() else { return Ok(Vec::new()) };
            let stored = shared.store.view()?.range(&keys::all(Kind::Namespace))?;
            stored
                .into_iter()
                .map(|(key, _)| {
                    let [name] = keys::parts(&key)?;
                    Namespace::new(name)
                })
                .collect()
        }
    }

    /// Garbage collection.
    pub fn gc(&self) -> Gc {
        Gc::new(self.clone())
    }

    /// Looking after what the backends hold.
    pub fn upkeep(&self) -> Upkeep {
        Upkeep::new(self.clone())
    }

    /// Notes that a layer was unpacked into an active snapshot with these mounts, for the record of
    /// its commit. A second one into the same makes it nothing that could be unpacked again.
    pub fn note_applied(&self, mounts: &[Mount], origin: LayerOrigin) {
        self.shared.applied.note(mounts, origin);
    }

    /// Who may share blobs.
    pub fn policy(&self) -> SharingPolicy {
        self.shared.policy
    }

    /// Runs `work`, whose writes everyone sees when it resolves but a power cut may take until
    /// the next write made outside, or [`Db::sync`]: for a caller of many calls that tells nobody of
    /// one before all are done. Removals don't belong in it: what they remove is gone at once.
    pub async fn relaxed<T>(work: impl Future<Output = T>) -> T {
        gantry_store::relaxed(work).await
    }

    /// Makes everything that was written so far durable; costs nothing when it is.
    ///
    /// # Errors
    /// That of the disk.
    pub async fn sync(&self) -> Result<()> {
        strict(self.write(|_| Ok(()))).await
    }

    pub(crate) fn view(&self) -> Result<Snapshot> {
        self.shared.store.view()
    }

    /// Runs `read` over the state of now off the async threads, for reads of many records.
    pub(crate) async fn read<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Snapshot) -> Result<T> + Send + 'static,
    {
        let view = self.view()?;
        blocking(move || read(&view)).await
    }

    /// Runs `write` in a transaction; see [`Tx`].
    pub(crate) async fn write<T, F>(&self, write: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_, '_>) -> Result<T> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        self.shared.store.update(move |txn| write(&mut Tx { txn, shared: &shared })).await
    }

    /// A number no backend name has carried before, also across restarts.
    pub(crate) async fn next_number(&self) -> Result<u64> {
        use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
        let numbers = &self.shared.numbers;
        let number = numbers.next.fetch_add(1, AcqRel);
        if number < numbers.reserved_shown.load(Acquire) {
            return Ok(number);
        }
        let mut reserved = numbers.reserved.lock().await;
        if number >= *reserved {
            let limit = number + NUMBERS_BLOCK_LEN;
            // Strict: files may carry the number before anything else is on disk.
            strict(self.write(move |tx| {
                tx.txn.put(&keys::all(Kind::Sequence), limit.to_be_bytes());
                Ok(())
            }))
            .await?;
            *reserved = limit;
            numbers.reserved_shown.store(limit, Release);
        }
        Ok(number)
    }
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db")
            .field("snapshotters", &self.shared.snapshotters.keys())
            .field("policy", &self.shared.policy)
            .finish_non_exhaustive()
    }
}

fn decode_number(value: &[u8]) -> Result<u64> {
    let bytes = value.try_into().map_err(|_| Error::data_loss("stored sequence is damaged"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// A transaction of the metadata store: the raw one, and what every facade does in it.
pub(crate) struct Tx<'a, 't> {
    pub(crate) txn: &'a mut Txn<'t>,
    shared: &'a Arc<Shared>,
}

impl Tx<'_, '_> {
    /// Makes the namespace exist, as the first object written into it does.
    pub(crate) fn ensure_namespace(&mut self, namespace: &Namespace) -> Result<()> {
        let key = keys::namespace(namespace.as_str());
        if !self.txn.has(&key)? {
            self.txn.put(&key, encode(&NamespaceRecord::default()));
        }
        Ok(())
    }

    /// Tells `event` once the commit is durable.
    pub(crate) fn emit(&mut self, namespace: &Namespace, event: Event) {
        let (events, namespace) = (Arc::clone(&self.shared.events), namespace.clone());
        self.txn.after_commit(move || events.publish(&namespace, &event));
    }

    /// Notes that `node` was written, so that a running collection takes it and what it refers to
    /// for live. Every write of a record with references, and every new lease member, calls this.
    pub(crate) fn touch(&mut self, node: impl FnOnce() -> Node) {
        self.shared.gc.touch(node);
        self.count(false);
    }

    /// Notes that something was taken away that may leave garbage behind.
    pub(crate) fn dirty(&mut self) {
        self.count(true);
    }

    /// Notes when an object with these labels expires, so that a collection comes then.
    pub(crate) fn expires(&mut self, labels: &Labels) {
        if let Some(at) = gc::expiry(labels) {
            let shared = Arc::clone(self.shared);
            self.txn.after_commit(move || shared.gc.expect_expiry(at));
        }
    }

    /// Where bytes that are kept in this transaction are counted once it is committed.
    pub(crate) fn unsettled(&self) -> Arc<Unsettled> {
        Arc::clone(&self.shared.unsettled)
    }

    fn count(&mut self, dirty: bool) {
        let shared = Arc::clone(self.shared);
        self.txn.after_commit(move || shared.gc.count(dirty));
    }

    /// Checks that the context's lease exists, if it has one.
    pub(crate) fn check_lease(&self, ctx: &Context) -> Result<()> {
        check_lease(self.txn, ctx)
    }

    /// Adds a resource to the context's lease, if it has one.
    pub(crate) fn lease_add(&mut self, ctx: &Context, kind: &str, id: &str) -> Result<()> {
        let Some(lease) = &ctx.lease else { return Ok(()) };
        self.check_lease(ctx)?;
        self.txn.put(&keys::lease_resource(&ctx.namespace, lease, kind, id), Vec::new());
        self.touch(|| Node::resource(&ctx.namespace, kind, id));
        Ok(())
    }

    /// Takes a resource from the context's lease, if it has one and the lease has it.
    pub(crate) fn lease_drop(&mut self, ctx: &Context, kind: &str, id: &str) {
        if let Some(lease) = &ctx.lease {
            self.txn.delete(&keys::lease_resource(&ctx.namespace, lease, kind, id));
        }
    }
}

/// Checks that the context's lease exists, if it has one.
pub(crate) fn check_lease(read: &(impl KvRead + ?Sized), ctx: &Context) -> Result<()> {
    match &ctx.lease {
        Some(lease) if !read.has(&keys::object(Kind::Lease, &ctx.namespace, lease))? => {
            Err(Error::not_found(format!("lease {lease:?}: lease does not exist")))
        }
        _ => Ok(()),
    }
}

/// Encodes a record.
pub(crate) fn encode(record: &impl prost::Message) -> Vec<u8> {
    record.encode_to_vec()
}

/// The time stamped on records.
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Runs `work` to its end even when the caller goes away: for work that makes something in a
/// backend and then records it.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(carry(work)).await {
        Ok(result) => result,
        Err(err) if err.is_panic() => std::panic::resume_unwind(err.into_panic()),
        Err(_) => Err(Error::unavailable("the daemon is stopping")),
    }
}

/// Runs `work` off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) if err.is_panic() => std::panic::resume_unwind(err.into_panic()),
        Err(_) => Err(Error::unavailable("the daemon is stopping")),
    }
}
