//! The in-memory store, for tests.

use std::collections::BTreeMap;
use std::future::{Future, ready};
use std::ops::Bound;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_errdefs::Result;

use crate::read::{KvRead, Snapshot, Visit};
use crate::work::{Job, Store, run_hooks};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store that lives in memory and runs each write on its caller's thread. Snapshots share the
/// map and make the next write copy it: fine for tests, nothing else.
#[derive(Debug, Default)]
pub struct MemStore {
    map: Mutex<Arc<Map>>,
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

struct MemState(Arc<Map>);

impl Store for MemStore {
    fn view(&self) -> Result<Snapshot> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Snapshot::new(MemState(Arc::clone(&map))))
    }

    fn submit(&self, job: Job) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.submit_blocking(job);
        Box::pin(ready(()))
    }

    fn submit_blocking(&self, mut job: Job) {
        // Hooks run under the lock: they keep commit order, and they may not write.
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let base = MemState(Arc::clone(&map));
        let outcome = job.run(&base);
        drop(base);
        if let Some((writes, hooks)) = outcome {
            let map = Arc::make_mut(&mut map);
            for (key, value) in writes {
                match value {
                    Some(value) => map.insert(key, value),
                    None => map.remove(&key),
                };
            }
            run_hooks(hooks);
        }
        job.finish(None);
    }
}

impl KvRead for MemState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }

    fn scan_range(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        for (key, value) in self.0.range::<[u8], _>(bounds) {
            if visit(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
