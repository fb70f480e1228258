//! Backend objects that are being made or taken away right now.
//!
//! A backend object exists a moment before its record does (durable before visible). Garbage
//! collection must not take that for an orphan, and a maker must not build on a blob that is being
//! deleted. Each maker holds a *use* of the backend name; the collector takes it *exclusively*,
//! only if nobody uses it, and users that come meanwhile wait until it is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The registry. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inflight(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Users by name; [`EXCLUSIVE`] while the collector has it.
    names: Mutex<HashMap<String, usize>>,
    freed: Notify,
}

const EXCLUSIVE: usize = usize::MAX;

impl Inflight {
    /// Uses `name`, waiting while the collector takes it away.
    pub(crate) async fn enter(&self, name: &str) -> Guard {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut names = self.names();
                let users = names.entry(name.to_owned()).or_insert(0);
                if *users != EXCLUSIVE {
                    *users += 1;
                    return Guard { registry: self.clone(), name: name.to_owned() };
                }
            }
            freed.await;
        }
    }

    /// Takes `name` exclusively, unless it is used.
    pub(crate) fn try_exclusive(&self, name: &str) -> Option<Guard> {
        let mut names = self.names();
        if names.contains_key(name) {
            return None;
        }
        names.insert(name.to_owned(), EXCLUSIVE);
        Some(Guard { registry: self.clone(), name: name.to_owned() })
    }

    /// Takes `name` exclusively, waiting for its users to end.
    pub(crate) async fn exclusive(&self, name: &str) -> Guard {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(guard) = self.try_exclusive(name) {
                return guard;
            }
            freed.await;
        }
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A use of a name; ends when dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    registry: Inflight,
    name: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut names = self.registry.names();
        if let Some(users) = names.get_mut(&self.name) {
            if *users == EXCLUSIVE || *users == 1 {
                names.remove(&self.name);
                drop(names);
                self.registry.0.freed.notify_waiters();
            } else {
                *users -= 1;
            }
        }
    }
}
