//! What this client knows of containers by its own doing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use gantry_client::ExitStatus;

/// Containers by id. Never held over an await.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry {
    containers: Arc<Mutex<HashMap<String, Known>>>,
}

/// What is known of one container.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Pid of its own process; 0 when there is none.
    pub(super) pid: u32,
    /// Whether its making and starting are old: done before this client looked.
    pub(super) told: bool,
    /// How its own process ended, if this client removed it.
    pub(super) exit: Option<ExitStatus>,
    /// Execs, with how they ended if this client removed them.
    pub(super) execs: HashMap<String, Option<ExitStatus>>,
}

impl Registry {
    pub(super) fn task(&self, container: &str, pid: u32, told: bool) {
        let mut all = self.lock();
        let known = all.entry(container.to_owned()).or_default();
        if known.pid != pid {
            *known = Known { pid, told, ..Known::default() };
        }
    }

    pub(super) fn exec(&self, container: &str, exec: &str) {
        self.lock().entry(container.to_owned()).or_default().execs.insert(exec.to_owned(), None);
    }

    pub(super) fn ended(&self, container: &str, exec: &str, exit: &ExitStatus) {
        let mut all = self.lock();
        let known = all.entry(container.to_owned()).or_default();
        if exec.is_empty() {
            known.exit = Some(*exit);
        } else {
            known.execs.insert(exec.to_owned(), Some(*exit));
        }
    }

    pub(super) fn forget(&self, container: &str) {
        self.lock().remove(container);
    }

    /// Forgets the task of `pid`, whose deletion was told; a later one stays.
    pub(super) fn forget_task(&self, container: &str, pid: u32) {
        let mut all = self.lock();
        if all.get(container).is_some_and(|known| known.pid == pid) {
            all.remove(container);
        }
    }

    /// Forgets an exec whose exit was told.
    pub(super) fn forget_exec(&self, container: &str, exec: &str) {
        if let Some(known) = self.lock().get_mut(container) {
            known.execs.remove(exec);
        }
    }

    pub(super) fn get(&self, container: &str) -> Known {
        self.lock().get(container).cloned().unwrap_or_default()
    }

    pub(super) fn containers(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.containers.lock().expect("no one panics while holding it")
    }
}
