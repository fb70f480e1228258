//! The flat form: every call names its container, and this keeps the objects.
//!
//! It is what engines of the first generation are written against. A process is named by
//! [`INIT_PROCESS`] or the id of an exec; execs are removed by this as soon as the engine was
//! told of their exit.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::SystemTime;

use async_trait::async_trait;
use gantry_client::{ContainerBuilder, ProcessStatus, Version};
use gantry_errdefs::{Error, Result};
use gantry_oci::{LinuxResources, Spec};

use crate::client::{Client, Options};
use crate::container::Container;
use crate::process::Process;
use crate::stdio::DirectIo;
use crate::task::Task;
use crate::types::{Backend, EventInfo, EventType, INIT_PROCESS, Restored, Stats, Summary};

/// Containers by id, in one object. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FlatClient {
    objects: Client,
    table: Arc<Table>,
}

/// What the calls' ids stand for. Never held over an await.
#[derive(Debug, Default)]
struct Table {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Clone, Debug)]
struct Entry {
    container: Container,
    task: Option<Task>,
    execs: HashMap<String, Process>,
}

/// The engine's backend with ours in front, which removes execs that have ended.
struct Cleaning {
    engine: Arc<dyn Backend>,
    table: OnceLock<Weak<Table>>,
}

#[async_trait]
impl Backend for Cleaning {
    async fn process_event(
        &self,
        container_id: &str,
        event: EventType,
        info: EventInfo,
    ) -> Result<()> {
        let exec = (event == EventType::Exit && info.process_id != container_id)
            .then(|| info.process_id.clone());
        let told = self.engine.process_event(container_id, event, info).await;
        let table = self.table.get().and_then(Weak::upgrade);
        if let (Some(exec), Some(table)) = (exec, table)
            && let Some(process) = table.take_exec(container_id, &exec)
            && let Err(e) = process.delete().await
            && !e.is_not_found()
        {
            tracing::warn!(container = container_id, exec, error = %e, "exec left");
        }
        told
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().expect("no one panics while holding it")
    }

    fn take_exec(&self, container: &str, exec: &str) -> Option<Process> {
        self.lock().get_mut(container)?.execs.remove(exec)
    }
}

impl FlatClient {
    /// As [`Client::new`].
    ///
    /// # Errors
    /// As [`Client::new`].
    pub async fn new(
        daemon: gantry_client::Client,
        options: Options,
        backend: Arc<dyn Backend>,
    ) -> Result<Self> {
        let table = Arc::new(Table::default());
        let cleaning = Cleaning { engine: backend, table: OnceLock::from(Arc::downgrade(&table)) };
        let objects = Client::new(daemon, options, Arc::new(cleaning)).await?;
        Ok(Self { objects, table })
    }

    /// The objects below.
    pub fn objects(&self) -> &Client {
        &self.objects
    }

    /// The daemon's version.
    ///
    /// # Errors
    /// Unavailable.
    pub async fn version(&self) -> Result<Version> {
        self.objects.version().await
    }

    /// Takes a container up again after the engine was restarted; see [`Container::restore`].
    ///
    /// # Errors
    /// NotFound when the daemon does not have it.
    pub async fn restore(
        &self,
        container_id: &str,
        attach: impl FnOnce(DirectIo) -> Result<()>,
    ) -> Result<Restored> {
        let container = self.objects.load_container(container_id).await?;
        let (restored, task) = container.restore(attach).await?;
        let entry = Entry { container, task, execs: HashMap::new() };
        self.table.lock().insert(container_id.to_owned(), entry);
        Ok(restored)
    }

    /// Makes a container; see [`Client::new_container`].
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument for an unknown runtime.
    pub async fn create(
        &self,
        container_id: &str,
        spec: &Spec,
        runtime: &str,
        options: impl FnOnce(ContainerBuilder) -> ContainerBuilder,
    ) -> Result<()> {
        let container = self.objects.new_container(container_id, spec, runtime, options).await?;
        let entry = Entry { container, task: None, execs: HashMap::new() };
        self.table.lock().insert(container_id.to_owned(), entry);
        Ok(())
    }

    /// Makes and starts the container's task; returns its pid. A task that does not start is
    /// removed again.
    ///
    /// # Errors
    /// As [`Container::new_task`] and [`Task::start`].
    pub async fn start(
        &self,
        container_id: &str,
        checkpoint: Option<&Path>,
        with_stdin: bool,
        attach: impl FnOnce(DirectIo) -> Result<()>,
    ) -> Result<u32> {
        let container = self.entry(container_id).await?.container;
        let task = container.new_task(with_stdin, checkpoint, attach).await?;
        let pid = match task.start().await {
            Ok(pid) => pid,
            Err(e) => {
                if let Err(left) = task.force_delete().await {
                    tracing::warn!(container = container_id, error = %left, "task left");
                }
                return Err(e);
            }
        };
        if let Some(entry) = self.table.lock().get_mut(container_id) {
            entry.task = Some(task);
        }
        Ok(pid)
    }

    /// Sends a signal to a process.
    ///
    /// # Errors
    /// NotFound.
    pub async fn signal_process(
        &self,
        container_id: &str,
        process_id: &str,
        signal: u32,
    ) -> Result<()> {
        self.process(container_id, process_id).await?.kill(signal).await
    }

    /// Adds a process and runs it; returns its pid.
    ///
    /// # Errors
    /// As [`Task::exec`].
    pub async fn exec(
        &self,
        container_id: &str,
        process_id: &str,
        spec: &gantry_oci::Process,
        with_stdin: bool,
        attach: impl FnOnce(DirectIo) -> Result<()>,
    ) -> Result<u32> {
        let task = self.task(container_id).await?;
        let process = task.exec(process_id, spec, with_stdin, attach).await?;
        let pid = process.pid();
        if let Some(entry) = self.table.lock().get_mut(container_id) {
            entry.execs.insert(process_id.to_owned(), process.clone());
        }
        // It may have ended, and the engine been told, before it was in the table.
        self.remove_if_over(container_id, process_id, &process).await;
        Ok(pid)
    }

    /// Sets the size of a process' terminal, in characters.
    ///
    /// # Errors
    /// NotFound.
    pub async fn resize_terminal(
        &self,
        container_id: &str,
        process_id: &str,
        width: u32,
        height: u32,
    ) -> Result<()> {
        self.process(container_id, process_id).await?.resize(width, height).await
    }

    /// Ends a process' input.
    ///
    /// # Errors
    /// NotFound.
    pub async fn close_stdin(&self, container_id: &str, process_id: &str) -> Result<()> {
        self.process(container_id, process_id).await?.close_stdin().await
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// NotFound; an error in the wrong state.
    pub async fn pause(&self, container_id: &str) -> Result<()> {
        self.task(container_id).await?.pause().await
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// NotFound; an error in the wrong state.
    pub async fn resume(&self, container_id: &str) -> Result<()> {
        self.task(container_id).await?.resume().await
    }

    /// One reading of a container's cgroup.
    ///
    /// # Errors
    /// NotFound.
    pub async fn stats(&self, container_id: &str) -> Result<Stats> {
        self.task(container_id).await?.stats().await
    }

    /// Pids of a container's processes on the host.
    ///
    /// # Errors
    /// NotFound.
    pub async fn list_pids(&self, container_id: &str) -> Result<Vec<u32>> {
        self.task(container_id).await?.pids().await
    }

    /// A container's processes.
    ///
    /// # Errors
    /// NotFound.
    pub async fn summary(&self, container_id: &str) -> Result<Vec<Summary>> {
        self.task(container_id).await?.summary().await
    }

    /// Removes a container's task, which must be over; returns its exit code and when it ended.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while it runs.
    pub async fn delete_task(&self, container_id: &str) -> Result<(u32, SystemTime)> {
        let exit = self.task(container_id).await?.delete().await?;
        if let Some(entry) = self.table.lock().get_mut(container_id) {
            entry.task = None;
            entry.execs.clear();
        }
        Ok((exit.code, exit.exited_at))
    }

    /// Removes a container, which must not have a task.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition.
    pub async fn delete(&self, container_id: &str) -> Result<()> {
        self.entry(container_id).await?.container.delete().await?;
        self.table.lock().remove(container_id);
        Ok(())
    }

    /// The state of a container's own process; [`ProcessStatus::Unknown`] without a task.
    ///
    /// # Errors
    /// NotFound for the container.
    pub async fn status(&self, container_id: &str) -> Result<ProcessStatus> {
        match self.task(container_id).await {
            Ok(task) => task.status().await,
            Err(e) if e.is_not_found() => {
                self.entry(container_id).await.map(|_| ProcessStatus::Unknown)
            }
            Err(e) => Err(e),
        }
    }

    /// Changes the limits of a running container.
    ///
    /// # Errors
    /// NotFound; Unknown with the runtime's text.
    pub async fn update_resources(
        &self,
        container_id: &str,
        resources: &LinuxResources,
    ) -> Result<()> {
        self.task(container_id).await?.update_resources(resources).await
    }

    /// Writes a checkpoint into `dir`; with `exit` the container ends.
    ///
    /// # Errors
    /// Unknown with criu's text.
    pub async fn create_checkpoint(
        &self,
        container_id: &str,
        dir: &Path,
        exit: bool,
    ) -> Result<()> {
        self.task(container_id).await?.create_checkpoint(dir, exit).await
    }

    async fn remove_if_over(&self, container_id: &str, process_id: &str, process: &Process) {
        let over = match process.state().await {
            Ok(state) => state.status == ProcessStatus::Stopped,
            Err(e) => e.is_not_found(),
        };
        // The event may still come; then the cleaning backend finds nothing to do.
        if over && self.table.take_exec(container_id, process_id).is_some() {
            let _ = process.delete().await;
        }
    }

    async fn entry(&self, container_id: &str) -> Result<Entry> {
        if let Some(entry) = self.table.lock().get(container_id) {
            return Ok(entry.clone());
        }
        let container = self.objects.load_container(container_id).await?;
        let task = match container.task().await {
            Ok(task) => Some(task),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        let entry = Entry { container, task, execs: HashMap::new() };
        Ok(self.table.lock().entry(container_id.to_owned()).or_insert(entry).clone())
    }

    async fn task(&self, container_id: &str) -> Result<Task> {
        let entry = self.entry(container_id).await?;
        entry.task.ok_or_else(|| Error::not_found(format!("container {container_id}: task")))
    }

    async fn process(&self, container_id: &str, process_id: &str) -> Result<Process> {
        let entry = self.entry(container_id).await?;
        if process_id != INIT_PROCESS {
            if let Some(process) = entry.execs.get(process_id) {
                return Ok(process.clone());
            }
            return self.task(container_id).await?.load_exec(process_id).await;
        }
        Ok(Process::clone(&*self.task(container_id).await?))
    }
}
