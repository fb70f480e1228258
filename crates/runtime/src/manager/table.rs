//! Which tasks there are.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_core::Namespace;
use gantry_errdefs::{Error, Result};
use tokio::sync::watch;

use crate::journal::Journal;
use crate::shim::Shim;

/// Tasks that are gone remembered so that late events of them are not published again. A shim
/// that is late by more than this many ends is not late but wrong.
const BURIED_MAX: usize = 256;

/// Namespace and id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) namespace: Namespace,
    pub(super) id: String,
}

impl Key {
    pub(super) fn new(namespace: &Namespace, id: &str) -> Self {
        Self { namespace: namespace.clone(), id: id.to_owned() }
    }

    pub(super) fn not_found(&self) -> Error {
        Error::not_found(format!("task {} not found", self.id))
    }
}

#[derive(Debug)]
enum Entry {
    /// Being created; not to be seen yet.
    Starting,
    /// A bundle of an earlier run whose shim is being looked for; the channel closes after.
    Loading(watch::Receiver<()>),
    /// Running.
    Ready(Arc<Shim>),
}

/// The tasks by key. A std mutex guards it: held for map accesses, never across an await.
#[derive(Debug, Default)]
pub(super) struct Table {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// For each entry, whatever its state.
    journals: HashMap<Key, Arc<Journal>>,
    /// With the pid of the first process.
    buried: VecDeque<(Key, u32)>,
    /// Set when the daemon stops: no shim is held any more.
    closed: bool,
}

impl Table {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a key for a task to be created.
    ///
    /// # Errors
    /// AlreadyExists.
    pub(super) fn reserve(&self, key: &Key, journal: Arc<Journal>) -> Result<()> {
        let mut state = self.state();
        if state.entries.contains_key(key) {
            return Err(Error::already_exists(format!("task {}", key.id)));
        }
        state.entries.insert(key.clone(), Entry::Starting);
        state.journals.insert(key.clone(), journal);
        Ok(())
    }

    /// Marks a bundle found on disk; the sender is dropped when it has been dealt with.
    pub(super) fn loading(&self, key: &Key, journal: Arc<Journal>) -> watch::Sender<()> {
        let (sender, receiver) = watch::channel(());
        let mut state = self.state();
        state.entries.insert(key.clone(), Entry::Loading(receiver));
        state.journals.insert(key.clone(), journal);
        sender
    }

    /// The journal of a task, as soon as there is the first trace of it.
    pub(super) fn journal(&self, key: &Key) -> Option<Arc<Journal>> {
        self.state().journals.get(key).cloned()
    }

    /// Shows the task.
    pub(super) fn ready(&self, key: &Key) -> Option<Arc<Shim>> {
        match self.state().entries.get(key) {
            Some(Entry::Ready(shim)) => Some(Arc::clone(shim)),
            _ => None,
        }
    }

    /// Makes the task seen, unless the table is closed.
    pub(super) fn set_ready(&self, key: Key, shim: Arc<Shim>) {
        let mut state = self.state();
        if state.closed {
            shim.leave();
        }
        state.entries.insert(key, Entry::Ready(shim));
    }

    /// Lets go of all shims, also of those that are still being started or found.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for entry in state.entries.values() {
            if let Entry::Ready(shim) = entry {
                shim.leave();
            }
        }
    }

    /// Gives the key free again.
    pub(super) fn forget(&self, key: &Key) {
        let mut state = self.state();
        state.entries.remove(key);
        state.journals.remove(key);
    }

    /// As [`Table::forget`], and remembers that the end of the task has been published.
    pub(super) fn forget_buried(&self, key: &Key, pid: u32) {
        let mut state = self.state();
        state.entries.remove(key);
        state.journals.remove(key);
        if state.buried.len() >= BURIED_MAX {
            state.buried.pop_front();
        }
        state.buried.push_back((key.clone(), pid));
    }

    /// Whether a task of this key and a pid that `is_it` takes is gone and has been reported.
    pub(super) fn was_buried(&self, key: &Key, is_it: impl Fn(u32) -> bool) -> bool {
        self.state().buried.iter().any(|(buried, pid)| buried == key && is_it(*pid))
    }

    /// The task, after waiting for it to be found, at most `deadline`.
    ///
    /// # Errors
    /// NotFound; Unavailable when it is still being looked for after `deadline`.
    pub(super) async fn get(&self, key: &Key, deadline: Duration) -> Result<Arc<Shim>> {
        let mut loading = match self.state().entries.get(key) {
            Some(Entry::Ready(shim)) => return Ok(Arc::clone(shim)),
            Some(Entry::Loading(loading)) => loading.clone(),
            Some(Entry::Starting) | None => return Err(key.not_found()),
        };
        let found = async { while loading.changed().await.is_ok() {} };
        if tokio::time::timeout(deadline, found).await.is_err() {
            return Err(Error::unavailable(format!("task {}: looking for its shim", key.id)));
        }
        self.ready(key).ok_or_else(|| key.not_found())
    }

    /// Whether there is a task, or one on its way.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.state().entries.contains_key(key)
    }

    /// All tasks that are ready.
    pub(super) fn all(&self) -> Vec<Arc<Shim>> {
        let state = self.state();
        let ready = state.entries.values().filter_map(|entry| match entry {
            Entry::Ready(shim) => Some(Arc::clone(shim)),
            _ => None,
        });
        ready.collect()
    }

    /// Whether another task's shim listens at `address`, so that both share a process.
    pub(super) fn is_shared(&self, key: &Key, address: &str) -> bool {
        self.state().entries.iter().any(|(other, entry)| {
            other != key
                && match entry {
                    Entry::Ready(shim) => shim.address == address,
                    // One that is just starting may have joined any pod.
                    Entry::Starting | Entry::Loading(_) => other.namespace == key.namespace,
                }
        })
    }
}
