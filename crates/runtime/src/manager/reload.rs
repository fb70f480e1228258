//! Finding the shims of an earlier run.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use gantry_ttrpc::Client;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::table::Key;
use super::{Manager, blocking};
use crate::binary::Binary;
use crate::bootstrap::Bootstrap;
use crate::bundle::{Bundle, Found};
use crate::journal::Journal;
use crate::log::LogReader;
use crate::names::RUNC_V2;
use crate::shim::{Identity, Shim};
use crate::start::{self, remove_bundle};

/// Shims asked at a time. One that hangs takes a place for its deadline, so there are many;
/// asking costs a socket and a few messages.
const RELOADS_MAX: usize = 64;

/// How long a shim must not know its task before it is taken to have none.
const EMPTY_AFTER: Duration = Duration::from_secs(1);

/// What became of a bundle.
enum Outcome {
    /// Its shim lives and knows the task, or does not answer: nothing may be cleaned up then.
    Lives(Arc<Shim>),
    /// Its shim lives and knows no such task: the daemon died before it was created.
    Empty(Arc<Shim>),
    /// Its shim is gone.
    Dead(Error),
}

impl Manager {
    /// Looks at every bundle in the background.
    pub(super) fn reload(&self, found: Vec<Found>) {
        let room = Arc::new(Semaphore::new(RELOADS_MAX));
        let mut loads = JoinSet::new();
        for found in found {
            let key = Key::new(&found.namespace, &found.id);
            // Before anyone can ask: a task not looked at yet must not seem to be missing.
            let journal = Journal::new(&found.bundle.path, false);
            let loading = self.inner.table.loading(&key, journal);
            let (manager, room) = (self.clone(), Arc::clone(&room));
            loads.spawn(async move {
                let _room = room.acquire().await.expect("never closed");
                manager.load(&key, found.bundle).await;
                drop(loading);
            });
        }
        let manager = self.clone();
        tokio::spawn(async move {
            while loads.join_next().await.is_some() {}
            manager.inner.loaded.send_replace(true);
        });
    }

    pub(super) async fn load(&self, key: &Key, bundle: Bundle) {
        let who = match self.identify(key, bundle.clone()).await {
            Ok(who) => who,
            Err(err) => {
                tracing::warn!(id = key.id, %err, "bundle without a shim program");
                remove_bundle(&key.id, &bundle).await;
                self.inner.table.forget(key);
                return;
            }
        };
        let program = who.program.clone();
        match self.find(who).await {
            Outcome::Lives(shim) => {
                self.inner.table.set_ready(key.clone(), Arc::clone(&shim));
                self.watch(&shim);
            }
            Outcome::Empty(shim) => {
                tracing::info!(id = key.id, "shim without a task is ended");
                // The shim goes first: nothing it is still doing may come after the clean-up.
                self.end_shim(&shim).await;
                if let Err(err) = shim.clean_up().await {
                    tracing::debug!(id = key.id, %err, "clean-up after a task never created");
                }
                // Or deleted: the shim has told so, unless it died before it could.
                let pid = self.tell_of_record(key, &bundle).await;
                remove_bundle(&key.id, &bundle).await;
                self.inner.table.forget_buried(key, pid);
            }
            Outcome::Dead(err) => {
                tracing::info!(id = key.id, %err, "shim of an earlier run is gone");
                self.clean_up_dead(key, &program, &bundle).await;
            }
        }
    }

    /// Connects again to a shim whose connection broke. False when it is gone, or no longer knows
    /// the task.
    pub(super) async fn take_over(&self, lost: &Arc<Shim>) -> bool {
        let Outcome::Lives(shim) = self.find(lost.identity()).await else {
            return false;
        };
        let one_at_a_time = lost.deleting.lock().await;
        if lost.is_released() {
            shim.leave();
            return true;
        }
        tracing::warn!(id = shim.id, "connection to a shim broke: connected again");
        // Whoever still holds the lost one must not delete through it.
        lost.release();
        self.inner.table.set_ready(Key::new(&shim.namespace, &shim.id), Arc::clone(&shim));
        drop(one_at_a_time);
        self.watch(&shim);
        true
    }

    async fn identify(&self, key: &Key, bundle: Bundle) -> Result<Identity> {
        let read = bundle.clone();
        let (program, sandbox_id) =
            blocking(move || Ok((read.shim_program(), read.sandbox()))).await?;
        let program = match program {
            Some(program) => program,
            None => start::program(&self.inner.config, RUNC_V2).await?,
        };
        Ok(Identity {
            config: Arc::clone(&self.inner.config),
            namespace: key.namespace.clone(),
            id: key.id.clone(),
            bundle,
            program,
            sandbox_id,
        })
    }

    async fn find(&self, who: Identity) -> Outcome {
        let path = who.bundle.path.clone();
        let connected = blocking(move || Bootstrap::load(&path))
            .await
            .and_then(|bootstrap| Ok((Client::connect(&bootstrap.address)?, bootstrap)));
        let (connection, bootstrap) = match connected {
            Ok(connected) => connected,
            Err(err) => return Outcome::Dead(err),
        };
        // A shim whose log we cannot read still runs containers.
        let log = LogReader::open(&who.bundle.log(), &who.id)
            .inspect_err(|err| tracing::warn!(id = who.id, %err, "log of a shim"))
            .ok();
        let shim = Arc::new(Shim::new(who, &bootstrap, connection, log));
        let deadline = self.inner.config.deadlines.load;
        let begun = Instant::now();
        let asked = async {
            shim.connect(deadline).await?;
            loop {
                let state = shim.state_within("", deadline).await;
                // The last daemon may have died while the shim was creating the task.
                if !state.as_ref().is_err_and(Error::is_not_found) || begun.elapsed() > EMPTY_AFTER
                {
                    return state;
                }
                tokio::time::sleep(EMPTY_AFTER / 10).await;
            }
        };
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(_)) => Outcome::Lives(shim),
            Ok(Err(err)) if shim.is_dead() => Outcome::Dead(err),
            Ok(Err(err)) if err.is_not_found() => Outcome::Empty(shim),
            // It listens, so its process exists, and with it perhaps the container: a shim that
            // does not answer is reported, never taken for dead.
            outcome => {
                let why = match outcome {
                    Ok(Err(err)) => err.text(),
                    _ => format!("no answer within {deadline:?}"),
                };
                tracing::warn!(id = shim.id, why, "shim of an earlier run: task is degraded");
                shim.set_degraded();
                Outcome::Lives(shim)
            }
        }
    }

    /// Lets the shim program clean up, and publishes how the task ended if there was one.
    async fn clean_up_dead(&self, key: &Key, program: &Path, bundle: &Bundle) {
        let read = bundle.clone();
        let had_task = blocking(move || Ok(read.had_task())).await.unwrap_or(false);
        let binary = Binary {
            config: &self.inner.config,
            program,
            namespace: &key.namespace,
            id: &key.id,
            bundle,
        };
        let exit = match binary.delete().await {
            Ok(exit) => exit,
            Err(err) => {
                tracing::warn!(id = key.id, %err, "clean-up after a dead shim");
                Shim::unknown_exit()
            }
        };
        if had_task {
            self.tell_the_rest(key, bundle, &exit, true).await;
        }
        remove_bundle(&key.id, bundle).await;
        self.inner.table.forget_buried(key, exit.pid);
    }
}
