//! All tasks of all shims.

mod create;
mod leftovers;
mod reload;
mod remove;
mod table;
mod upgrade;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_core::{Any, Namespace};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_events::Exchange;
use tokio::sync::{oneshot, watch};

use crate::attach::Attaches;
use crate::binary::{self, Versions};
use crate::bundle::Bundles;
use crate::config::Config;
use crate::journal::Journal;
use crate::plugin::{Runtime, Task};
use crate::shim::Shim;
use crate::{CreateOptions, Exit, sandbox, start};
pub use leftovers::{Leftover, LeftoverKind};
use table::{Key, Table};
pub use upgrade::{ShimProcess, ShimStatus, UpgradeOptions, UpgradeOutcome};

/// The runtime plugin over shims. Cheap to clone; clones share everything.
///
/// Every task is on its own: no lock is held while a shim is asked, started or cleaned up after,
/// so that one that hangs holds up its own callers only.
#[derive(Clone, Debug)]
pub struct Manager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    bundles: Bundles,
    /// Of sandboxes, which tasks join.
    sandboxes: Bundles,
    versions: Versions,
    exchange: Exchange,
    table: Table,
    attaches: Attaches,
    /// True once every bundle of an earlier run has been looked at.
    loaded: watch::Sender<bool>,
    started_at: SystemTime,
}

/// How much longer a list waits than finding a shim may take.
const LOAD_MARGIN: Duration = Duration::from_millis(500);

/// Where to look whether a fact of a task has been told.
#[derive(Debug)]
pub(crate) enum Told {
    /// In the task's journal.
    By(Arc<Journal>),
    /// The task is gone, and all of it has been told.
    Already,
    /// The task is not ours.
    Never,
}

impl Manager {
    /// Makes the directories, lists the bundles of an earlier run and starts looking for their
    /// shims in the background. Must be called within a tokio runtime; blocks for the listing.
    ///
    /// # Errors
    /// The class of the I/O error when a directory cannot be made.
    pub fn open(config: Config, exchange: Exchange) -> Result<Self> {
        for dir in [&config.root, &config.state] {
            std::fs::create_dir_all(dir).context(|| dir.display().to_string())?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
            std::fs::set_permissions(dir, mode).context(|| dir.display().to_string())?;
        }
        let bundles = Bundles::new(config.root.clone(), config.state.clone());
        let (found, sandboxes) = (bundles.scan(), sandbox::bundles(&config));
        let manager = Self {
            inner: Arc::new(Inner {
                config: Arc::new(config),
                bundles,
                sandboxes,
                versions: Versions::default(),
                exchange,
                table: Table::default(),
                attaches: Attaches::default(),
                loaded: watch::Sender::new(false),
                started_at: SystemTime::now(),
            }),
        };
        manager.reload(found);
        Ok(manager)
    }

    /// Resolves when every shim of an earlier run has been found, cleaned up after, or marked as
    /// degraded. Nothing has to wait for it: [`Runtime::get`] waits for the one task asked for.
    pub async fn loaded(&self) {
        let mut loaded = self.inner.loaded.subscribe();
        // The sender lives as long as `self`.
        let _ = loaded.wait_for(|done| *done).await;
    }

    /// Whether every shim of an earlier run has been looked for.
    pub fn is_loaded(&self) -> bool {
        *self.inner.loaded.borrow()
    }

    /// Whether there is a task of this name, or one on its way.
    pub fn has_task(&self, namespace: &Namespace, id: &str) -> bool {
        self.inner.table.holds(&Key::new(namespace, id))
    }

    /// Lets go of all shims, which live on: for a daemon that stops without its process ending.
    /// Tasks taken from this manager fail with Unavailable from now on.
    pub fn close(&self) {
        self.inner.table.close();
    }

    /// What a shim program says of itself (`-info`): an encoded `containerd.types.RuntimeInfo`.
    ///
    /// # Errors
    /// Those of finding the program; Unknown with its output when it fails.
    pub async fn info(&self, runtime: &str, options: Option<&Any>) -> Result<Vec<u8>> {
        let program = start::program(&self.inner.config, runtime).await?;
        let deadline = self.inner.config.deadlines.info;
        binary::info(&program, options, deadline).await
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.inner.exchange
    }

    /// When this manager was opened; what happened before did so without a daemon.
    pub(crate) fn started_at(&self) -> SystemTime {
        self.inner.started_at
    }

    /// Who knows whether a fact of the task has been told; `pid` is that of its first process, 0
    /// for not known.
    pub(crate) fn journal(&self, namespace: &Namespace, id: &str, pid: u32) -> Told {
        let (key, table) = (Key::new(namespace, id), &self.inner.table);
        match table.journal(&key) {
            // Of an earlier task of this id.
            _ if table.was_buried(&key, |buried| pid != 0 && buried == pid) => Told::Already,
            Some(journal) => Told::By(journal),
            None if table.was_buried(&key, |_| true) => Told::Already,
            None => Told::Never,
        }
    }

    async fn shim(&self, namespace: &Namespace, id: &str) -> Result<Arc<Shim>> {
        let deadline = self.inner.config.deadlines.load;
        self.inner.table.get(&Key::new(namespace, id), deadline).await
    }
}

#[async_trait]
impl Runtime for Manager {
    fn id(&self) -> &'static str {
        "task"
    }

    async fn create(
        &self,
        namespace: &Namespace,
        id: &str,
        options: CreateOptions,
    ) -> Result<Arc<dyn Task>> {
        let (created, outcome) = oneshot::channel();
        let (manager, key) = (self.clone(), Key::new(namespace, id));
        tokio::spawn(async move {
            let result = manager.create_task(&key, options).await;
            if let Err(Ok(unwanted)) = created.send(result) {
                // The caller has gone away: nobody knows of this task.
                manager.discard(unwanted).await;
            }
        });
        finished(outcome).await.map(|shim| shim as Arc<dyn Task>)
    }

    async fn get(&self, namespace: &Namespace, id: &str) -> Result<Arc<dyn Task>> {
        self.shim(namespace, id).await.map(|shim| shim as Arc<dyn Task>)
    }

    async fn tasks(&self, namespace: Option<&Namespace>) -> Result<Vec<Arc<dyn Task>>> {
        // A shim that does not answer is found to be silent at the end of its own deadline, which
        // must come first.
        let deadline = self.inner.config.deadlines.load + LOAD_MARGIN;
        let _ = tokio::time::timeout(deadline, self.loaded()).await;
        let shims = self.inner.table.all();
        Ok(shims
            .into_iter()
            .filter(|shim| namespace.is_none_or(|ns| *ns == shim.namespace))
            .map(|shim| shim as Arc<dyn Task>)
            .collect())
    }

    async fn delete(&self, namespace: &Namespace, id: &str) -> Result<Exit> {
        let shim = self.shim(namespace, id).await?;
        let (deleted, outcome) = oneshot::channel();
        let manager = self.clone();
        tokio::spawn(async move {
            // A caller that went away does not stop a deletion half way.
            let _ = deleted.send(manager.delete_task(&shim).await);
        });
        finished(outcome).await
    }
}

/// The outcome of work in the background.
async fn finished<T>(outcome: oneshot::Receiver<Result<T>>) -> Result<T> {
    outcome.await.unwrap_or_else(|_| Err(Error::internal("runtime: background work panicked")))
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::internal("runtime: file work panicked")))
}

#[cfg(test)]
mod tests;
