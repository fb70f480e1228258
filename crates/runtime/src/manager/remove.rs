//! The end of a task: deleted by a client, or with a shim that died.

use std::sync::Arc;

use gantry_errdefs::Result;

use super::table::Key;
use super::{Manager, blocking};
use crate::Exit;
use crate::bundle::Bundle;
use crate::events::{delete_event, exit_event};
use crate::journal::{Fact, OfTask};
use crate::phase::phase;
use crate::shim::Shim;
use crate::start::remove_bundle;

impl Manager {
    /// Deletes a task that has stopped, its shim if it was the last, and its bundle.
    pub(super) async fn delete_task(&self, shim: &Arc<Shim>) -> Result<Exit> {
        let one_at_a_time = shim.deleting.lock().await;
        if shim.is_released() {
            return Err(key(shim).not_found());
        }
        let deletion = shim.delete("", self.inner.config.deadlines.delete);
        let exit = match phase(&shim.id, "shim-delete", deletion).await {
            Ok(exit) => Ok(exit),
            // The task is being cleaned up after as that of a dead shim.
            Err(_) if shim.is_dead() => {
                drop(one_at_a_time);
                return shim.burial().await;
            }
            // The shim lives and knows no such task: what we hold of it is stale.
            Err(err) if err.is_not_found() => Err(err),
            Err(err) => return Err(err.context("failed to delete task")),
        };
        phase(&shim.id, "end-shim", self.end_shim(shim)).await;
        // The shim has told all of it before it ended, if it is one that does.
        let pid = match &exit {
            Ok(exit) => {
                self.tell_the_rest(&key(shim), &shim.bundle, exit, false).await;
                exit.pid
            }
            Err(_) => self.tell_of_record(&key(shim), &shim.bundle).await,
        };
        phase(&shim.id, "remove-bundle", remove_bundle(&shim.id, &shim.bundle)).await;
        self.inner.table.forget_buried(&key(shim), pid);
        exit
    }

    /// Publishes what nobody has told yet of the end of a task: the exits of its execs, its own
    /// exit, its deletion, in this order. `recovered` when the task ended without a daemon.
    pub(super) async fn tell_the_rest(
        &self,
        key: &Key,
        bundle: &Bundle,
        exit: &Exit,
        recovered: bool,
    ) {
        let read = bundle.clone();
        let records = blocking(move || Ok(read.exits())).await.unwrap_or_default();
        let (ns, id) = (&key.namespace, &key.id);
        let execs = records.into_iter().filter(|record| !record.exec_id.is_empty());
        let mut facts: Vec<_> = execs
            .map(|record| {
                let event = exit_event(ns, id, &record.exec_id, &record.exit());
                (Fact::ExecExit { id: record.exec_id, pid: record.pid }, event)
            })
            .collect();
        facts.push((Fact::Exit, exit_event(ns, id, "", exit)));
        facts.push((Fact::Delete, delete_event(ns, id, exit)));
        // Without a journal the task has been forgotten, and all of it told.
        let Some(journal) = self.inner.table.journal(key) else { return };
        for (fact, event) in facts {
            let topic = event.topic.clone();
            // As the shim's own event has it: that of an exec comes without the pid of the task.
            let pid = if matches!(fact, Fact::ExecExit { .. }) { 0 } else { exit.pid };
            let of_task = OfTask { task: id.clone(), pid, fact: fact.clone() };
            let recovered = recovered.then(|| format!("{ns} {}", of_task.key()));
            if let Err(err) = journal.tell(&self.inner.exchange, fact, event, recovered).await {
                tracing::warn!(id, topic, %err, "event not published");
            }
        }
    }

    /// As [`Self::tell_the_rest`] for a task that its shim no longer knows: if it left a record of
    /// its exit. Returns the pid of its first process, 0 for not known.
    pub(super) async fn tell_of_record(&self, key: &Key, bundle: &Bundle) -> u32 {
        let read = bundle.clone();
        let records = blocking(move || Ok(read.exits())).await.unwrap_or_default();
        if let Some(init) = records.last().filter(|record| record.exec_id.is_empty()) {
            self.tell_the_rest(key, bundle, &init.exit(), true).await;
            return init.pid;
        }
        0
    }

    /// Ends the shim, if it has no other task, and lets go of it.
    pub(super) async fn end_shim(&self, shim: &Arc<Shim>) {
        if shim.sandbox_id.is_empty() {
            let alone = !self.inner.table.is_shared(&key(shim), &shim.address);
            shim.shut_down(alone).await;
        } else {
            // The pod's controller ends the pod's shim.
            shim.leave();
        }
    }

    /// Cleans up when the shim dies, for as long as it is the daemon's. A broken connection alone
    /// is no death: who still listens is connected to again.
    pub(super) fn watch(&self, shim: &Arc<Shim>) {
        let (manager, shim) = (self.clone(), Arc::clone(shim));
        tokio::spawn(async move {
            shim.died().await;
            if !shim.is_released() && !manager.take_over(&shim).await {
                manager.bury(&shim).await;
            }
        });
    }

    /// Cleans up after a dead shim, publishes how its task ended and forgets the task; nothing
    /// when the daemon itself ended it.
    async fn bury(&self, shim: &Arc<Shim>) {
        let _one_at_a_time = shim.deleting.lock().await;
        if shim.is_released() {
            return;
        }
        tracing::warn!(id = shim.id, "shim died");
        let exit = match shim.clean_up().await {
            Ok(exit) => exit,
            Err(err) => {
                tracing::warn!(id = shim.id, %err, "clean-up after a dead shim");
                Shim::unknown_exit()
            }
        };
        self.tell_the_rest(&key(shim), &shim.bundle, &exit, false).await;
        remove_bundle(&shim.id, &shim.bundle).await;
        self.inner.table.forget_buried(&key(shim), exit.pid);
        shim.bury(exit);
    }
}

fn key(shim: &Shim) -> Key {
    Key::new(&shim.namespace, &shim.id)
}
