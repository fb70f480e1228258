//! Garbage collection: what no root reaches goes away, while everything else goes on.
//!
//! # A run
//! 1. A write on the writer thread switches the *barrier* on: from then on every transaction that
//!    writes a record with references, or adds a lease member, notes the node it wrote.
//! 2. Roots are read and reachable objects marked over an MVCC snapshot, off the async threads.
//! 3. Candidates that were not reached are removed in small transactions between everyone else's,
//!    referrers first. Each of these first takes the noted nodes as roots and marks on from them
//!    in the state of the moment, and only then removes what is still not marked.
//! 4. The barrier is switched off, and what the records named is deleted in the backends (the
//!    *trash*), outside any transaction; so are [members](Members) that nothing holds.
//!
//! **Why nothing live is lost.** Say an object is reachable at the moment of its removal, and take
//! the last edge on a path to it that the snapshot did not have (or the root, if that is what is
//! new). The record that holds this edge was written after the barrier went up, so its node was
//! noted and marked on from; all edges after it were in the snapshot and still are, so the object
//! is marked: either now, or because a node on the way was marked in the snapshot already, whose
//! edges from there on were followed then.
//!
//! **What is paid for it.** An object written during a run is kept by that run, even if nothing
//! refers to it. The next one takes it.

mod graph;
mod labels;
mod mark;
mod members;
mod node;
mod reconcile;
mod run;
mod schedule;
#[cfg(test)]
mod tests;
mod trash;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use gantry_core::Digest;
use gantry_errdefs::Result;
use tokio::sync::Notify;

use crate::db::{Db, detached};

pub use labels::LABEL_EXPIRE;
pub(crate) use labels::expiry;
pub use members::{Member, MemberKind, Members};
pub(crate) use node::Node;
pub(crate) use reconcile::{backend_snapshots, forget_snapshots, is_backend_name};
pub(crate) use trash::{abort_ingest, discard_held, remove_snapshots as remove_backend_snapshots};

/// Everything that labels say to the collector; how many objects they name.
pub(crate) fn read_labels(labels: &gantry_core::Labels) -> usize {
    let mut count = usize::from(labels::is_root(labels)) + usize::from(labels::is_flat(labels));
    count += usize::from(expiry(labels).is_some());
    labels::references(labels, &mut |_, _| count += 1);
    labels::back_references(labels, SystemTime::UNIX_EPOCH, &mut |_, _| count += 1);
    count
}

/// When garbage is collected (`[plugins.'io.containerd.gc.v1.scheduler']`).
#[derive(Clone, Debug, PartialEq)]
pub struct GcConfig {
    /// Greatest share of time that collections by themselves may take, at most 0.5.
    pub pause_threshold: f64,
    /// Collect after this many deletions; 0 never.
    pub deletion_threshold: u32,
    /// Collect after this many writes; 0 never.
    pub mutation_threshold: u32,
    /// How long after its trigger a collection starts.
    pub schedule_delay: Duration,
    /// How long after [`Gc::start`] the first collection starts.
    pub startup_delay: Duration,
}

impl Default for GcConfig {
    fn default() -> Self {
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: Duration::ZERO,
            startup_delay: Duration::from_millis(100),
        }
    }
}

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcStats {
    /// How long it took.
    pub elapsed: Duration,
    /// Records removed: leases, images, blobs, snapshots and ingests.
    pub removed: u64,
    /// Backend objects deleted.
    pub deleted: u64,
}

/// What all collections since [`Db::open`] did, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcTotals {
    /// Runs that ended well.
    pub succeeded: u64,
    /// Runs that failed.
    pub failed: u64,
    /// Time all of them took.
    pub elapsed: Duration,
}

/// What start-up found when it compared records and backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Backend objects without a record, now deleted.
    pub orphans_removed: Vec<String>,
    /// Ingests without a record, now recorded.
    pub ingests_adopted: Vec<String>,
    /// Records whose object is gone, now removed.
    pub records_removed: Vec<String>,
}

/// The garbage collector's part of the store's state.
pub(crate) struct GcState {
    config: GcConfig,
    /// Whether a run is between its snapshot and its last sweep. Written on the writer thread.
    barrier_up: AtomicBool,
    /// Nodes written since the barrier went up and not yet marked on from.
    touched: Mutex<Vec<Node>>,
    mutations: AtomicU32,
    deletions: AtomicU32,
    /// The soonest known expiry, in nanoseconds since 1970; `u64::MAX` for none.
    expiry_nanos: AtomicU64,
    /// Wakes the scheduler. Behind an `Arc` so that the scheduler does not keep the store.
    wake: Arc<Notify>,
    runs: tokio::sync::Mutex<Runs>,
    /// Runs begun so far.
    begun: AtomicU64,
    totals: Mutex<GcTotals>,
    /// What lives outside the database.
    sources: members::Sources,
}

/// The last run that ended.
#[derive(Debug, Default)]
struct Runs {
    /// Its number: how many had begun with it.
    number: u64,
    stats: GcStats,
}

impl GcState {
    pub(crate) fn new(config: GcConfig) -> Self {
        Self {
            config,
            barrier_up: AtomicBool::new(false),
            touched: Mutex::default(),
            mutations: AtomicU32::new(0),
            deletions: AtomicU32::new(0),
            expiry_nanos: AtomicU64::new(u64::MAX),
            wake: Arc::default(),
            runs: tokio::sync::Mutex::default(),
            begun: AtomicU64::new(0),
            totals: Mutex::default(),
            sources: members::Sources::default(),
        }
    }

    /// Notes a written node while the barrier is up. On the writer thread.
    pub(crate) fn touch(&self, node: impl FnOnce() -> Node) {
        if self.barrier_up.load(Ordering::Acquire) {
            self.touched().push(node());
        }
    }

    /// Counts a write, towards the thresholds.
    pub(crate) fn count(&self, dirty: bool) {
        let mutations = self.mutations.fetch_add(1, Ordering::AcqRel) + 1;
        let first_deletion = dirty && self.deletions.fetch_add(1, Ordering::AcqRel) == 0;
        if first_deletion
            || mutations == self.config.mutation_threshold
            || self.config.deletion_threshold > 0 && dirty
        {
            self.wake.notify_one();
        }
    }

    /// Notes that something expires at `at`.
    pub(crate) fn expect_expiry(&self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        if self.expiry_nanos.fetch_min(nanos, Ordering::AcqRel) > nanos {
            self.wake.notify_one();
        }
    }

    /// Has a run come by itself in a while.
    fn retry_later(&self) {
        self.expect_expiry(SystemTime::now() + run::RETRY_DELAY);
    }

    fn touched(&self) -> MutexGuard<'_, Vec<Node>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn totals(&self) -> MutexGuard<'_, GcTotals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The garbage collector.
#[derive(Clone, Debug)]
pub struct Gc {
    db: Db,
}

impl Gc {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    /// Collects now: a full run that starts after this call. Callers that come while one is under
    /// way share the next. It ends even when the caller goes away.
    ///
    /// # Errors
    /// DataLoss or Unavailable when the database can't be read or written.
    pub async fn run(&self) -> Result<GcStats> {
        let db = self.db.clone();
        let before = db.shared.gc.begun.load(Ordering::Acquire);
        detached(async move {
            let state = &db.shared.gc;
            let mut runs = state.runs.lock().await;
            if runs.number > before {
                return Ok(runs.stats);
            }
            let number = state.begun.fetch_add(1, Ordering::AcqRel) + 1;
            let stats = run::collect(&db, SystemTime::now()).await?;
            *runs = Runs { number, stats };
            Ok(stats)
        })
        .await
    }

    /// What must be in order before the store is used; called once.
    ///
    /// * Small blobs that a power cut took are brought back.
    /// * After an `unclean` end, blobs without a record go: a small one whose record was lost was
    ///   never synced, so a power cut, that one or the next, may cut it short, and whoever stores
    ///   it again would be told that it is there.
    /// * An ingest that was open gets a record, to be resumed by its reference, and a record without
    ///   an ingest is removed. Done later, it would give a record to an ingest whose blob a client
    ///   has meanwhile fetched anew.
    ///
    /// # Errors
    /// DataLoss or Unavailable when database or content can't be read; what was done stays done.
    pub async fn recover(&self, unclean: bool) -> Result<Reconciled> {
        crate::content::settle::restore(&self.db).await?;
        reconcile::recover(&self.db, unclean).await
    }

    /// Compares blobs and snapshots with their records both ways. Orphans in the backends are
    /// removed, and so are records whose object is gone, that the next pull fetches it again.
    ///
    /// # Errors
    /// DataLoss or Unavailable when database or a backend can't be read; what was done stays done.
    pub async fn reconcile(&self) -> Result<Reconciled> {
        let db = self.db.clone();
        detached(async move { reconcile::reconcile(&db).await }).await
    }

    /// After the start-up delay [reconciles](Self::reconcile), then collects by itself until the
    /// last [`Db`] is dropped. Call it once, on a runtime.
    pub fn start(&self) {
        crate::content::settle::start(&self.db);
        schedule::start(&self.db);
    }

    /// From now on takes away those of `members` that nothing holds, with each collection. They
    /// are not kept alive by this.
    pub fn look_after(&self, kind: MemberKind, members: Weak<dyn Members>) {
        self.db.shared.gc.sources.add(kind, members);
    }

    /// Has a collection come soon, as after a deletion: for whoever finds that what it has just
    /// made has lost its holder.
    pub fn stir(&self) {
        self.db.shared.gc.count(true);
    }

    /// What all collections so far did.
    pub fn totals(&self) -> GcTotals {
        *self.db.shared.gc.totals()
    }

    /// The configuration.
    pub fn config(&self) -> &GcConfig {
        &self.db.shared.gc.config
    }

    /// Deletes a blob from the backend unless a namespace holds it or someone is about to.
    pub(crate) async fn discard_blob(&self, digest: &Digest) {
        if let Err(err) = trash::discard_blob(&self.db, digest).await {
            tracing::warn!(%digest, "left to reconciliation: {err}");
        }
    }
}
