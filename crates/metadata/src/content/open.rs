//! The table of ingests with an open writer.
//!
//! An open ingest lives here and in the backend; its record is written when the writer is let go
//! without a commit. A blob that arrives in one go thus costs one database commit, not two. After
//! a crash the next start gives a record to ingests that have none (`Gc::recover`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use gantry_content::Status;
use gantry_core::{Context, Digest, timestamp};
use gantry_errdefs::{Error, Result};
use tokio::sync::Notify;

/// Namespace and reference.
type Name = (String, String);

/// Ingests with an open writer.
#[derive(Debug, Default)]
pub(crate) struct OpenIngests(Mutex<HashMap<Name, Arc<OpenIngest>>>);

/// An open ingest, as seen from outside its writer.
#[derive(Debug)]
pub(super) struct OpenIngest {
    pub(super) backend_ref: String,
    pub(super) facts: Mutex<Facts>,
    opened: Instant,
    opened_at: SystemTime,
    /// The writer was let go and its record is being written.
    closing: AtomicBool,
    aborted: AtomicBool,
    closed: Notify,
}

/// What is known of an open ingest besides its bytes.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) total: u64,
    pub(super) expected: Option<Digest>,
    pub(super) started_at: SystemTime,
    /// Size of the blob another namespace shares, while the writer stands for that blob.
    pub(super) shared: Option<u64>,
}

impl OpenIngests {
    /// Opens `reference` in the context's namespace; `make` gives the backend reference and the
    /// facts. Waits for a writer that is being let go.
    ///
    /// # Errors
    /// Unavailable while another writer holds the reference.
    pub(super) async fn lock(
        &self,
        ctx: &Context,
        reference: &str,
        backend_ref: String,
        facts: Facts,
    ) -> Result<Arc<OpenIngest>> {
        let name = name(ctx, reference);
        let entry = Arc::new(OpenIngest {
            backend_ref,
            facts: Mutex::new(facts),
            opened: Instant::now(),
            opened_at: SystemTime::now(),
            closing: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            closed: Notify::new(),
        });
        match self.table().entry(name) {
            std::collections::hash_map::Entry::Occupied(held) => Err(held.get().busy()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(Arc::clone(&entry));
                Ok(entry)
            }
        }
    }

    /// Waits until no writer of the reference is being let go.
    ///
    /// # Errors
    /// Unavailable while a writer holds the reference.
    pub(super) async fn settle(&self, ctx: &Context, reference: &str) -> Result<()> {
        loop {
            let Some(held) = self.get(ctx, reference) else { return Ok(()) };
            let closed = held.closed.notified();
            tokio::pin!(closed);
            closed.as_mut().enable();
            // Looked at again after listening, or the notice could pass unheard.
            if !self.holds(ctx, reference, &held) {
                continue;
            }
            if !held.closing.load(Ordering::Acquire) {
                return Err(held.busy());
            }
            closed.await;
        }
    }

    /// The open ingest of a reference.
    pub(super) fn get(&self, ctx: &Context, reference: &str) -> Option<Arc<OpenIngest>> {
        self.table().get(&name(ctx, reference)).cloned()
    }

    /// The open ingests of a namespace, by reference.
    pub(super) fn of_namespace(&self, namespace: &str) -> Vec<(String, Arc<OpenIngest>)> {
        self.table()
            .iter()
            .filter(|((ns, _), _)| ns == namespace)
            .map(|((_, reference), entry)| (reference.clone(), Arc::clone(entry)))
            .collect()
    }

    /// Namespace and reference of every open ingest.
    pub(crate) fn names(&self) -> Vec<Name> {
        self.table().keys().cloned().collect()
    }

    /// Whether a writer has the ingest open.
    pub(crate) fn is_open(&self, namespace: &str, reference: &str) -> bool {
        self.table().contains_key(&(namespace.to_owned(), reference.to_owned()))
    }

    /// Takes `entry` out, unless an abort did and the name has gone to someone else.
    pub(super) fn close(&self, ctx: &Context, reference: &str, entry: &Arc<OpenIngest>) {
        if self.holds(ctx, reference, entry) {
            self.table().remove(&name(ctx, reference));
        }
        entry.closed.notify_waiters();
    }

    fn holds(&self, ctx: &Context, reference: &str, entry: &Arc<OpenIngest>) -> bool {
        self.get(ctx, reference).is_some_and(|held| Arc::ptr_eq(&held, entry))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Name, Arc<OpenIngest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenIngest {
    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin_close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(super) fn mark_aborted(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// The state of the ingest from the backend's (none while it stands for a shared blob).
    pub(super) fn overlay(&self, reference: &str, stored: Option<Status>) -> Status {
        let facts = self.facts().clone();
        Status {
            reference: reference.to_owned(),
            offset: facts.shared.or(stored.as_ref().map(|s| s.offset)).unwrap_or(0),
            total: facts.total,
            expected: facts.expected,
            started_at: facts.started_at,
            updated_at: stored.map_or(facts.started_at, |s| s.updated_at),
        }
    }

    fn busy(&self) -> Error {
        Error::unavailable(format!(
            "ref {} locked for {:.3?} (since {})",
            self.backend_ref,
            self.opened.elapsed(),
            timestamp::format(self.opened_at)
        ))
    }
}

fn name(ctx: &Context, reference: &str) -> Name {
    (ctx.namespace.as_str().to_owned(), reference.to_owned())
}
