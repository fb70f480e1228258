//! The shim's containers on their way to the next program, and exits that are being dealt with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gantry_errdefs::Result;
use tokio::sync::Notify;

use super::{Entry, Shim};
use crate::container::Container;
use crate::engine::{Engine, Runc};
use crate::log::warning;
use crate::options::{self, Options};
use crate::state::TaskOptions;
use crate::upgrade::fds::{Incoming, Outgoing};
use crate::upgrade::state::ContainerState;

/// Exits that were told and are not wholly dealt with.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    count: AtomicUsize,
    idle: Notify,
}

/// One such exit, until it is dropped.
#[derive(Debug)]
pub(super) struct Ending(Arc<Endings>);

impl Endings {
    pub(super) fn begin(self: &Arc<Self>) -> Ending {
        self.count.fetch_add(1, Ordering::Relaxed);
        Ending(Arc::clone(self))
    }

    /// Whether there is none.
    pub(crate) fn is_idle(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Resolves when there is none.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.is_idle() {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.idle.notify_waiters();
    }
}

impl Shim {
    /// The ids of the containers.
    pub(crate) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.containers().keys().cloned().collect();
        ids.sort();
        ids
    }

    fn all(&self) -> Vec<Arc<Container>> {
        let containers = self.containers();
        let ready = containers.values().filter_map(|entry| match entry {
            Entry::Ready(container) => Some(container.clone()),
            Entry::Creating => None,
        });
        ready.collect()
    }

    /// Stops every stream between two bytes.
    pub(crate) async fn hold_streams(&self) {
        for container in self.all() {
            for process in container.processes() {
                process.io().hold().await;
            }
        }
    }

    /// Lets streams flow again.
    pub(crate) fn release_streams(&self) {
        for process in self.all().iter().flat_map(|container| container.processes()) {
            process.io().release();
        }
    }

    /// What the next program needs to go on.
    ///
    /// # Errors
    /// A descriptor's.
    pub(crate) fn carry(&self, fds: Outgoing) -> Result<Vec<ContainerState>> {
        self.all().iter().map(|container| container.carry(fds)).collect()
    }

    /// Goes on where the program before this one was. Call it before anything is reaped.
    pub(crate) fn resume(&self, containers: Vec<ContainerState>) {
        let mut fds = Incoming::default();
        for state in containers {
            let container = Arc::new(self.container_of(state, &mut fds));
            self.containers().insert(container.id.clone(), Entry::Ready(container.clone()));
            if container.init.is_alive() {
                self.follow_init(&container, self.reaper.resume(container.init.pid()));
            }
            for exec in container.execs_now().iter().filter(|exec| exec.is_alive()) {
                self.follow_exec(&container, exec, self.reaper.resume(exec.pid()));
            }
        }
    }

    fn container_of(&self, state: ContainerState, fds: &mut Incoming) -> Container {
        let saved = TaskOptions::load(&state.bundle).unwrap_or_else(|err| {
            warning!("{err}");
            None
        });
        let saved = saved.unwrap_or_else(|| Options::default().saved());
        let config = options::runtime(&saved, &self.namespace, &state.bundle);
        let engine: Arc<dyn Engine> = Arc::new(Runc::new(config, self.reaper.clone()));
        Container::resume(state, engine, fds, &self.reaper)
    }
}
