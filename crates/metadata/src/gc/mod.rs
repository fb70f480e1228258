//! Garbage collection.
#![allow(clippy::todo, unused_variables)]

use std::time::Duration;

use gantry_core::Namespace;
use gantry_errdefs::Result;

use crate::db::Db;

mod node;

pub(crate) use node::Node;

/// When a lease or image expires (RFC 3339).
pub const LABEL_EXPIRE: &str = "containerd.io/gc.expire";

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

/// The garbage collector's state in the store.
#[derive(Debug)]
pub(crate) struct GcState {}

impl GcState {
    pub(crate) fn new(config: GcConfig) -> Self {
        Self {}
    }

    pub(crate) fn touch(&self, node: impl FnOnce() -> Node) {}

    pub(crate) fn count(&self, dirty: bool) {}
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

    /// Collects now: a full run that starts after this call. Callers that come together share
    /// runs.
    ///
    /// # Errors
    /// DataLoss or Unavailable when the database can't be read or written.
    pub async fn run(&self) -> Result<GcStats> {
        todo!()
    }

    /// Compares records and backends both ways and removes what has no partner, then starts
    /// collecting by itself until the last [`Db`] is dropped. Call once, on a runtime.
    pub fn start(&self) {
        todo!()
    }
}
