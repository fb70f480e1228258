//! Creating a task.

use std::path::PathBuf;
use std::sync::Arc;

use gantry_api::containerd::task::v2::CreateTaskRequest;
use gantry_core::{Any, identifiers};
use gantry_errdefs::Result;

use super::table::Key;
use super::{Manager, blocking};
use crate::binary::Binary;
use crate::bootstrap::Bootstrap;
use crate::bundle::{self, Bundle};
use crate::journal::Journal;
use crate::phase::phase;
use crate::shim::{Identity, Shim};
use crate::start::{Started, remove_bundle};
use crate::{CreateOptions, convert, options, start};

/// Gives a key free again unless the task was made.
struct Reservation<'a> {
    manager: &'a Manager,
    key: &'a Key,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.manager.inner.table.forget(self.key);
        }
    }
}

impl Manager {
    /// Makes bundle, shim and task; on failure none of them is left.
    pub(super) async fn create_task(
        &self,
        key: &Key,
        mut options: CreateOptions,
    ) -> Result<Arc<Shim>> {
        identifiers::validate("task", &key.id)?;
        let task_options =
            options::for_task(options.runtime_options.as_ref(), options.task_options.as_ref())?;
        let start_options = options::for_start(options.runtime_options.as_ref())?;
        let place = self.inner.bundles.bundle(&key.namespace, &key.id).path;
        self.inner.table.reserve(key, Journal::new(&place, true))?;
        let mut reservation = Reservation { manager: self, key, kept: false };
        let _attaches = self.inner.attaches.begin();
        let program = start::program(&self.inner.config, &options.runtime).await?;
        let alone = !bundle::is_grouped(&options.spec.value)
            && !options::has_shim_cgroup(start_options.as_ref());
        let bundle = phase(&key.id, "bundle", self.make_bundle(key, &mut options)).await?;
        if let Err(err) = self.take_checkpoint(&mut options, &bundle).await {
            remove_bundle(&key.id, &bundle).await;
            return Err(err);
        }
        let started = self.start_shim(key, &options, &program, &bundle, (start_options, alone));
        let started = phase(&key.id, "start-shim", started).await;
        let shim = match started {
            Ok(shim) => Arc::new(shim),
            Err(err) => {
                // The program may have left a shim behind.
                self.binary(key, &program, &bundle).remove().await;
                return Err(err);
            }
        };
        let request = request(&shim, options, task_options);
        if let Err(err) = phase(&key.id, "shim-create", shim.create(&request)).await {
            self.abandon(&shim).await;
            return Err(err.context("failed to create shim task"));
        }
        self.inner.table.set_ready(key.clone(), Arc::clone(&shim));
        reservation.kept = true;
        self.watch(&shim);
        Ok(shim)
    }

    async fn make_bundle(&self, key: &Key, options: &mut CreateOptions) -> Result<Bundle> {
        let bundles = self.inner.bundles.clone();
        let (key, spec) = (key.clone(), std::mem::take(&mut options.spec.value));
        let sandbox = options.sandbox_id.clone();
        blocking(move || bundles.create(&key.namespace, &key.id, &spec, &sandbox)).await
    }

    async fn take_checkpoint(&self, options: &mut CreateOptions, bundle: &Bundle) -> Result<()> {
        if options.take_checkpoint {
            let (bundle, from) = (bundle.clone(), PathBuf::from(&options.checkpoint));
            let to = blocking(move || bundle.take_checkpoint(&from)).await?;
            options.checkpoint = to.display().to_string();
        }
        Ok(())
    }

    /// Runs the shim's `start`, or finds the shim that the task joins, and connects.
    async fn start_shim(
        &self,
        key: &Key,
        options: &CreateOptions,
        program: &PathBuf,
        bundle: &Bundle,
        (start_options, alone): (Option<Any>, bool),
    ) -> Result<Shim> {
        let who = Identity {
            config: Arc::clone(&self.inner.config),
            namespace: key.namespace.clone(),
            id: key.id.clone(),
            bundle: bundle.clone(),
            program: program.clone(),
            sandbox_id: options.sandbox_id.clone(),
        };
        let joined = self.joined(key, options).await;
        let Started { bootstrap, connection, process, log } = self
            .binary(key, program, bundle)
            .start_connected(&self.inner.versions, joined, start_options.as_ref(), alone)
            .await?;
        let shim = Shim::new(who, &bootstrap, connection, Some(log));
        // Which process it is matters only if it does not end when told to.
        if let Some(process) = process {
            shim.set_process(process);
        } else if let Err(err) = shim.connect(self.inner.config.deadlines.connect_new).await {
            tracing::debug!(id = key.id, %err, "connect to a new shim");
        }
        Ok(shim)
    }

    fn binary<'a>(&'a self, key: &'a Key, program: &'a PathBuf, bundle: &'a Bundle) -> Binary<'a> {
        Binary {
            config: &self.inner.config,
            program,
            namespace: &key.namespace,
            id: &key.id,
            bundle,
        }
    }

    /// A shim that runs already: one that the caller names, or that of the pod.
    async fn joined(&self, key: &Key, options: &CreateOptions) -> Option<Bootstrap> {
        if let Some((address, version)) = &options.task_api {
            let (version, address) = (*version, address.clone());
            return Some(Bootstrap { version, address, protocol: "ttrpc".to_owned() });
        }
        if options.sandbox_id.is_empty() {
            return None;
        }
        let id = &options.sandbox_id;
        let sandbox = self.inner.sandboxes.bundle(&key.namespace, id);
        let pod = self.inner.bundles.bundle(&key.namespace, id);
        // Shims of version 2 find their pod themselves, by an annotation of the spec.
        let load = move || Bootstrap::load(&sandbox.path).or_else(|_| Bootstrap::load(&pod.path));
        let found = blocking(load).await.ok();
        found.filter(|bootstrap| bootstrap.version >= 3)
    }

    /// Undoes a task that could not be created.
    async fn abandon(&self, shim: &Arc<Shim>) {
        shim.release();
        let deleted = shim.delete("", self.inner.config.deadlines.cleanup).await;
        self.end_shim(shim).await;
        // A shim that works says that there is nothing to delete. One that died or hung may have
        // left a container behind.
        if let Err(err) = deleted
            && !err.is_not_found()
        {
            tracing::debug!(id = shim.id, %err, "deletion of a task that was not created");
            if let Err(err) = shim.clean_up().await {
                tracing::warn!(id = shim.id, %err, "clean-up after a task that was not created");
            }
        }
        remove_bundle(&shim.id, &shim.bundle).await;
    }

    /// Removes a task whose creator has gone away.
    pub(super) async fn discard(&self, shim: Arc<Shim>) {
        use crate::plugin::Task as _;
        const SIGKILL: u32 = 9;
        tracing::info!(id = shim.id, "the caller went away: task is removed");
        if let Err(err) = shim.kill("", SIGKILL, true).await {
            tracing::debug!(id = shim.id, %err, "kill of an unwanted task");
        }
        let cleanup = self.inner.config.deadlines.cleanup;
        let _ = tokio::time::timeout(cleanup, shim.wait("")).await;
        if let Err(err) = self.delete_task(&shim).await {
            tracing::warn!(id = shim.id, %err, "deletion of an unwanted task");
        }
    }
}

fn request(shim: &Shim, options: CreateOptions, task_options: Option<Any>) -> CreateTaskRequest {
    CreateTaskRequest {
        id: shim.id.clone(),
        bundle: shim.bundle.path.display().to_string(),
        rootfs: options.rootfs.into_iter().map(convert::mount_to_wire).collect(),
        terminal: options.io.terminal,
        stdin: options.io.stdin,
        stdout: options.io.stdout,
        stderr: options.io.stderr,
        checkpoint: options.checkpoint,
        parent_checkpoint: String::new(),
        options: task_options.as_ref().map(convert::to_wire),
    }
}
