//! Tasks: containers that run.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_client::{CheckpointOptions, ExitStatus, ProcessStatus, Streams};
use gantry_errdefs::Result;
use gantry_oci::LinuxResources;
use tokio::runtime::Handle;

use crate::client::Client;
use crate::container::{Opened, open};
use crate::process::Process;
use crate::stdio::{Closed, DirectIo};
use crate::types::{Stats, Summary};

/// A container's task. It is also the container's own process, whose methods it has.
#[derive(Clone, Debug)]
pub struct Task {
    process: Process,
    inner: gantry_client::Task,
    /// Ends of the streams that nobody uses, until the shim has opened its own; see [`Opened`].
    held: Arc<Mutex<Option<Streams>>>,
}

impl Task {
    pub(crate) fn new(
        client: Client,
        bundle: PathBuf,
        inner: gantry_client::Task,
        closed: Closed,
    ) -> Self {
        let (pid, own) = (inner.pid(), gantry_client::Process::clone(&inner));
        let held = Arc::default();
        Self { process: Process { client, inner: own, bundle, pid, closed }, inner, held }
    }

    /// Keeps ends of the streams until the task is started.
    pub(crate) fn holding(self, streams: Streams) -> Self {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(streams);
        self
    }

    /// Runs the container's process.
    ///
    /// # Errors
    /// Unknown with the runtime's text; the task can then be deleted.
    pub async fn start(&self) -> Result<u32> {
        let started = self.process.clone().start_inner().await;
        drop(self.held.lock().unwrap_or_else(PoisonError::into_inner).take());
        started
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// NotFound; an error in the wrong state.
    pub async fn pause(&self) -> Result<()> {
        self.inner.pause().await
    }

    /// Thaws the container.
    ///
    /// # Errors
    /// NotFound; an error in the wrong state.
    pub async fn resume(&self) -> Result<()> {
        self.inner.resume().await
    }

    /// One reading of the container's cgroup.
    ///
    /// # Errors
    /// NotFound; Internal when there is none to read.
    pub async fn stats(&self) -> Result<Stats> {
        let metrics = self.inner.metrics().await?;
        Ok(Stats { read: metrics.timestamp, metrics: metrics.data })
    }

    /// Pids of the container's processes on the host.
    ///
    /// # Errors
    /// NotFound.
    pub async fn pids(&self) -> Result<Vec<u32>> {
        Ok(self.inner.pids().await?.into_iter().map(|p| p.pid).collect())
    }

    /// The container's processes.
    ///
    /// # Errors
    /// NotFound.
    pub async fn summary(&self) -> Result<Vec<Summary>> {
        let pids = self.inner.pids().await?.into_iter();
        Ok(pids.map(|p| Summary { pid: p.pid, exec_id: p.exec_id }).collect())
    }

    /// The state of the container's own process.
    ///
    /// # Errors
    /// NotFound.
    pub async fn status(&self) -> Result<ProcessStatus> {
        Ok(self.inner.state().await?.status)
    }

    /// Removes the task, killing what runs; returns how it ended.
    ///
    /// # Errors
    /// NotFound.
    pub async fn force_delete(&self) -> Result<ExitStatus> {
        self.process.force_delete().await
    }

    /// Adds a process and runs it. `attach` gets the engine's ends of its streams first.
    ///
    /// # Errors
    /// AlreadyExists; FailedPrecondition when the container has ended; Unknown with the runtime's
    /// text, as when the program is not there.
    pub async fn exec(
        &self,
        id: &str,
        spec: &gantry_oci::Process,
        with_stdin: bool,
        attach: impl FnOnce(DirectIo) -> Result<()>,
    ) -> Result<Process> {
        let Process { client, bundle, .. } = &self.process;
        let terminal = spec.terminal().unwrap_or_default();
        let planned = client.daemon().tasks().process(self.inner.container_id(), id);
        let Opened { fifos, closed, held } =
            open(bundle, id, with_stdin, terminal, &planned, attach)?;
        let inner = self.inner.exec(id, spec, fifos.stdio()).await?;
        client.inner.events.exec_known(self.inner.container_id(), id);
        let unstarted = Unstarted { inner: Some(inner.clone()), runtime: Handle::current() };
        let (client, bundle) = (client.clone(), bundle.clone());
        let mut process = Process { client, inner, bundle, pid: 0, closed };
        process.start_inner().await?;
        drop(held);
        unstarted.keep();
        fifos.keep();
        Ok(process)
    }

    /// The process of an exec that is there.
    ///
    /// # Errors
    /// NotFound.
    pub async fn load_exec(&self, id: &str) -> Result<Process> {
        let inner = self.inner.load_process(id).await?;
        let pid = inner.state().await?.pid;
        let Process { client, bundle, .. } = self.process.clone();
        Ok(Process { client, inner, bundle, pid, closed: Closed::default() })
    }

    /// Changes the limits of the running container.
    ///
    /// # Errors
    /// NotFound; Unknown with the runtime's text.
    pub async fn update_resources(&self, resources: &LinuxResources) -> Result<()> {
        self.inner.update(resources).await
    }

    /// Writes a checkpoint into `dir`, on the daemon's machine; with `exit` the container ends.
    ///
    /// # Errors
    /// Unknown with criu's text.
    pub async fn create_checkpoint(&self, dir: &Path, exit: bool) -> Result<()> {
        let image_path = dir.to_string_lossy().into_owned();
        let options = CheckpointOptions { exit, image_path, ..CheckpointOptions::default() };
        self.inner.checkpoint(&options).await.map(drop)
    }
}

/// An exec that was added, removed again unless it is started.
struct Unstarted {
    inner: Option<gantry_client::Process>,
    runtime: Handle,
}

impl Unstarted {
    fn keep(mut self) {
        self.inner = None;
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        let Some(process) = self.inner.take() else { return };
        self.runtime.spawn(async move {
            if let Err(e) = process.delete_with_kill().await {
                tracing::debug!(exec = process.exec_id(), error = %e, "exec left");
            }
        });
    }
}

impl Deref for Task {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}
