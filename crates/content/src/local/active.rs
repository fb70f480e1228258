//! The table of references that are open for writing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_core::Digest;
use gantry_errdefs::{Error, Result};

use crate::Status;

/// References open for writing, with what their writers tell others.
#[derive(Clone, Debug, Default)]
pub(super) struct Active(Arc<Mutex<HashMap<String, Arc<Live>>>>);

/// What an open writer shares.
#[derive(Debug)]
pub(super) struct Live {
    since: SystemTime,
    offset: AtomicU64,
    total: AtomicU64,
    end: AtomicU8,
    expected: OnceLock<Digest>,
}

/// How the ingest of an open writer ended: whichever of the two comes first.
const OPEN: u8 = 0;
const ABORTED: u8 = 1;
const COMMITTED: u8 = 2;

/// The right to write one reference; dropping it frees the reference.
#[derive(Debug)]
pub(super) struct RefLock {
    table: Active,
    reference: String,
    live: Arc<Live>,
}

impl Active {
    /// Takes `reference`.
    ///
    /// # Errors
    /// Unavailable while someone else has it.
    pub(super) fn lock(&self, reference: &str) -> Result<RefLock> {
        let mut table = self.table();
        if let Some(holder) = table.get(reference) {
            let held = holder.since.elapsed().unwrap_or_default();
            // Whole seconds, as clients have always seen it.
            let held = Duration::from_secs(held.as_secs());
            let since = jiff::Timestamp::try_from(holder.since).unwrap_or_default();
            return Err(Error::unavailable(format!(
                "ref {reference} locked for {held:?} (since {since})"
            )));
        }
        let live = Arc::new(Live {
            since: SystemTime::now(),
            offset: AtomicU64::new(0),
            total: AtomicU64::new(0),
            end: AtomicU8::new(OPEN),
            expected: OnceLock::new(),
        });
        table.insert(reference.to_owned(), Arc::clone(&live));
        Ok(RefLock { table: self.clone(), reference: reference.to_owned(), live })
    }

    /// The open writer of `reference`, if there is one.
    pub(super) fn get(&self, reference: &str) -> Option<Arc<Live>> {
        self.table().get(reference).cloned()
    }

    /// Every open writer's ingest, also of those that have nothing on disk yet.
    pub(super) fn statuses(&self) -> Vec<Status> {
        self.table().iter().filter_map(|(reference, live)| live.status(reference)).collect()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Arc<Live>>> {
        // Single map operations only, so a panic elsewhere cannot leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Bytes taken so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Acquire)
    }

    /// Tells the writer that its ingest is gone. False when it has become a blob before.
    pub(super) fn mark_aborted(&self) -> bool {
        self.finish(ABORTED)
    }

    fn finish(&self, end: u8) -> bool {
        match self.end.compare_exchange(OPEN, end, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => found == end,
        }
    }

    /// What the writer itself knows; None once it has come to an end.
    pub(super) fn status(&self, reference: &str) -> Option<Status> {
        (self.end.load(Ordering::Acquire) == OPEN).then(|| Status {
            reference: reference.to_owned(),
            offset: self.offset(),
            total: self.total.load(Ordering::Acquire),
            expected: self.expected(),
            started_at: self.since,
            updated_at: self.since,
        })
    }

    /// Digest the writer expects.
    pub(super) fn expected(&self) -> Option<Digest> {
        self.expected.get().cloned()
    }
}

impl RefLock {
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    pub(super) fn set_offset(&self, offset: u64) {
        self.live.offset.store(offset, Ordering::Release);
    }

    pub(super) fn set_total(&self, total: u64) {
        self.live.total.store(total, Ordering::Release);
    }

    /// When the reference was taken.
    pub(super) fn since(&self) -> SystemTime {
        self.live.since
    }

    /// Decides between this commit and an abort that comes at the same time.
    ///
    /// # Errors
    /// NotFound when the ingest was aborted.
    pub(super) fn begin_commit(&self) -> Result<()> {
        if self.live.finish(COMMITTED) { Ok(()) } else { self.check() }
    }

    pub(super) fn set_expected(&self, digest: Digest) {
        // A lock has one writer, which calls this once.
        let _ = self.live.expected.set(digest);
    }

    pub(super) fn expected(&self) -> Option<Digest> {
        self.live.expected()
    }

    /// # Errors
    /// NotFound when the ingest was aborted.
    pub(super) fn check(&self) -> Result<()> {
        if self.live.end.load(Ordering::Acquire) == ABORTED {
            return Err(Error::not_found(format!("ingest {}: aborted", self.reference)));
        }
        Ok(())
    }
}

impl Drop for RefLock {
    fn drop(&mut self) {
        self.table.table().remove(&self.reference);
    }
}
