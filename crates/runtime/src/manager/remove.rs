//! The end of a task: deleted by a client, or with a shim that died.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_errdefs::Result;

use super::table::Key;
use super::{Manager, blocking};
use crate::Exit;
use crate::bundle::Bundle;
use crate::events::{publish_delete, publish_exit};
use crate::phase::phase;
use crate::shim::Shim;

impl Manager {
    /// Deletes a task that has stopped, its shim if it was the last, and its bundle.
    pub(super) async fn delete_task(&self, shim: &Arc<Shim>) -> Result<Exit> {
        let one_at_a_time = shim.deleting.lock().await;
        if shim.is_released() {
            return Err(key(shim).not_found());
        }
        let deletion = shim.delete("", self.inner.config.deadlines.delete);
        let exit = match phase(&shim.id, "shim-delete", deletion).await {
            Ok(exit) => {
                let bundle = shim.bundle.clone();
                // Without the mark a daemon that dies right now would publish the end twice.
                if let Err(err) = blocking(move || bundle.mark_deleted()).await {
                    tracing::warn!(id = shim.id, %err, "mark of a deleted task");
                }
                Ok(exit)
            }
            // The task is being cleaned up after as that of a dead shim.
            Err(_) if shim.is_dead() => {
                drop(one_at_a_time);
                return shim.burial().await;
            }
            // The shim lives and knows no such task: what we hold of it is stale.
            Err(err) if err.is_not_found() => Err(err),
            Err(err) => return Err(err.context("failed to delete task")),
        };
        self.finish(shim).await;
        exit
    }

    /// Ends the shim, if it has no other task, and removes what the daemon holds of the task.
    async fn finish(&self, shim: &Arc<Shim>) {
        phase(&shim.id, "end-shim", self.end_shim(shim)).await;
        phase(&shim.id, "remove-bundle", self.remove_bundle(&shim.id, &shim.bundle)).await;
        self.inner.table.forget(&key(shim));
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

    /// Removes a bundle; what cannot be removed is tried again at the next start.
    pub(super) async fn remove_bundle(&self, id: &str, bundle: &Bundle) {
        let bundle = bundle.clone();
        let removed = blocking(move || {
            bundle.remove_stale_socket();
            bundle.delete()
        });
        if let Err(err) = removed.await {
            tracing::warn!(id, %err, "bundle not removed");
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
        let exchange = &self.inner.exchange;
        if !shim.published.exit.swap(true, Ordering::AcqRel) {
            publish_exit(exchange, &shim.namespace, &shim.id, &exit);
        }
        if !shim.published.delete.swap(true, Ordering::AcqRel) {
            publish_delete(exchange, &shim.namespace, &shim.id, &exit);
        }
        self.remove_bundle(&shim.id, &shim.bundle).await;
        self.inner.table.forget_buried(&key(shim));
        shim.bury(exit);
    }
}

fn key(shim: &Shim) -> Key {
    Key::new(&shim.namespace, &shim.id)
}
