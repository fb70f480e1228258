//! Tasks: containers that run.

use std::ops::Deref;
use std::time::SystemTime;

use gantry_api::containerd::linux::runc as old;
use gantry_api::containerd::runc::v1 as runc;
use gantry_api::containerd::services::tasks::v1 as wire;
use gantry_api::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_api::io::containerd::cgroups;
use gantry_api::{Payload, TypeUrl};
use gantry_core::{Any, Descriptor};
use gantry_errdefs::{Error, Result};
use gantry_oci::LinuxResources;

use crate::cancel::{make_or_undo, make_or_undo_marked};
use crate::checkpoint::Saved;
use crate::client::{Client, handle, service};
use crate::containers::Container;
use crate::convert::{Mount, any, any_out, descriptor, descriptor_out, required, status, time};
use crate::image::Image;
use crate::io::Stdio;
use crate::process::{Process, ProcessState, state};
use crate::typeurl;

/// The runtime of containerd 1.x whose options are of another type.
const LINUX_RUNTIME: &str = "io.containerd.runtime.v1.linux";

handle! {
    /// The tasks service: the running side of containers.
    Tasks, tasks
}

/// A container's task. It is also the container's own process, whose methods it has.
#[derive(Clone, Debug)]
pub struct Task {
    process: Process,
    pid: u32,
}

/// Makes a task, step by step.
#[derive(Clone, Debug)]
pub struct TaskBuilder {
    container: Container,
    stdio: Stdio,
    rootfs: Option<Vec<Mount>>,
    checkpoint: Option<Descriptor>,
    from_checkpoint: Option<Image>,
    options: Option<Any>,
    no_pivot_root: bool,
    runtime_path: String,
}

/// A process within the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidInfo {
    /// Pid on the host.
    pub pid: u32,
    /// The exec it is; empty for others.
    pub exec_id: String,
}

/// One reading of a task's cgroup.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The container.
    pub id: String,
    /// When it was read.
    pub timestamp: SystemTime,
    /// The values.
    pub data: TaskMetrics,
}

/// Values of a cgroup, as the shim sent them.
#[derive(Clone, Debug)]
pub enum TaskMetrics {
    /// Of cgroup version 1.
    V1(Box<cgroups::v1::Metrics>),
    /// Of cgroup version 2.
    V2(Box<cgroups::v2::Metrics>),
    /// Of a shim with values of its own.
    Other(Any),
}

/// How a checkpoint is taken.
#[derive(Clone, Debug, Default)]
pub struct CheckpointOptions {
    /// Ends the container.
    pub exit: bool,
    /// Keeps TCP connections.
    pub open_tcp: bool,
    /// Takes unix sockets to the outside along.
    pub external_unix_sockets: bool,
    /// Takes the terminal along.
    pub terminal: bool,
    /// Keeps locks on files.
    pub file_locks: bool,
    /// Kinds of namespaces that are left empty, such as `network`.
    pub empty_namespaces: Vec<String>,
    /// Directory for the image files; empty stores them as content.
    pub image_path: String,
    /// Directory for criu's logs.
    pub work_path: String,
}

impl CheckpointOptions {
    pub(crate) fn to_wire(&self) -> runc::CheckpointOptions {
        runc::CheckpointOptions {
            exit: self.exit,
            open_tcp: self.open_tcp,
            external_unix_sockets: self.external_unix_sockets,
            terminal: self.terminal,
            file_locks: self.file_locks,
            empty_namespaces: self.empty_namespaces.clone(),
            image_path: self.image_path.clone(),
            work_path: self.work_path.clone(),
            ..runc::CheckpointOptions::default()
        }
    }
}

impl Tasks {
    /// The state of a container's task.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, container_id: &str) -> Result<ProcessState> {
        self.process(container_id, "").state().await
    }

    /// The tasks of the namespace.
    ///
    /// # Errors
    /// FailedPrecondition without a namespace.
    pub async fn list(&self) -> Result<Vec<ProcessState>> {
        let request = wire::ListTasksRequest { filter: String::new() };
        let answer = service!(self.client, TasksClient)
            .list(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.tasks.into_iter().map(state).collect())
    }

    /// A container's task as an object.
    ///
    /// # Errors
    /// NotFound.
    pub async fn load(&self, container_id: &str) -> Result<Task> {
        let process = self.process(container_id, "");
        let pid = process.state().await?.pid;
        Ok(Task { process, pid })
    }

    /// A handle to a process, which need not exist: exec `exec_id`, or the container's own when
    /// that is empty.
    pub fn process(&self, container_id: &str, exec_id: &str) -> Process {
        Process {
            client: self.client.clone(),
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
        }
    }

    /// Readings of the tasks that match any of `filters` (`id==...`).
    ///
    /// # Errors
    /// An error for a bad filter.
    pub async fn metrics(&self, filters: &[String]) -> Result<Vec<Metrics>> {
        let request = wire::MetricsRequest { filters: filters.to_vec() };
        let answer = service!(self.client, TasksClient)
            .metrics(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        answer
            .metrics
            .into_iter()
            .map(|m| {
                let data = decode_metrics(m.data.unwrap_or_default())?;
                Ok(Metrics { id: m.id, timestamp: time(m.timestamp), data })
            })
            .collect()
    }
}

impl Container {
    /// Starts making the container's task, with the given input and output.
    pub fn new_task(&self, stdio: &Stdio) -> TaskBuilder {
        TaskBuilder {
            container: self.clone(),
            stdio: stdio.clone(),
            rootfs: None,
            checkpoint: None,
            from_checkpoint: None,
            options: None,
            no_pivot_root: false,
            runtime_path: String::new(),
        }
    }

    /// The container's task.
    ///
    /// # Errors
    /// NotFound.
    pub async fn task(&self) -> Result<Task> {
        self.client().tasks().load(self.id()).await
    }
}

impl TaskBuilder {
    /// Mounts of the root filesystem, instead of those of the container's snapshot.
    #[must_use]
    pub fn rootfs(mut self, mounts: Vec<Mount>) -> Self {
        self.rootfs = Some(mounts);
        self
    }

    /// Restores from a checkpoint that is an image; see [`Container::checkpoint_image`].
    #[must_use]
    pub fn from_checkpoint(mut self, checkpoint: &Image) -> Self {
        self.from_checkpoint = Some(checkpoint.clone());
        self
    }

    /// Leaves the root filesystem's change to `chroot`, for roots that cannot be pivoted to, such
    /// as a ramdisk. Only for runtimes with the options of runc.
    #[must_use]
    pub fn no_pivot_root(mut self) -> Self {
        self.no_pivot_root = true;
        self
    }

    /// Restores from the memory of a checkpoint.
    #[must_use]
    pub fn checkpoint(mut self, checkpoint: Descriptor) -> Self {
        self.checkpoint = Some(checkpoint);
        self
    }

    /// Options for the shim, instead of the container's.
    #[must_use]
    pub fn options(mut self, options: Any) -> Self {
        self.options = Some(options);
        self
    }

    /// The shim's path, instead of the one its name stands for.
    #[must_use]
    pub fn runtime_path(mut self, path: impl Into<String>) -> Self {
        self.runtime_path = path.into();
        self
    }

    /// Makes the task. It has its pid and its namespaces, and does not run yet. Dropped before
    /// the end, the task is deleted again.
    ///
    /// # Errors
    /// AlreadyExists; NotFound; Unknown with the runtime's text when the shim fails.
    pub async fn create(self) -> Result<Task> {
        let undo = |task: Task| async move {
            if let Err(e) = task.delete_with_kill().await {
                tracing::debug!(task = task.container_id(), error = %e, "task left");
            }
        };
        let (unsettled, name) = (self.container.client().unsettled(), self.container.task_name());
        // One that was given up just now stands in the way until it is undone.
        unsettled.settled(&name).await;
        let mark = unsettled.begin(name);
        make_or_undo_marked(Some(mark), self.create_now(), undo).await
    }

    async fn create_now(self) -> Result<Task> {
        let client = self.container.client().clone();
        let record = self.container.record();
        let rootfs = match self.rootfs {
            Some(mounts) => mounts,
            None if record.snapshot_key.is_empty() => Vec::new(),
            None => client.snapshots(&record.snapshotter).mounts(&record.snapshot_key).await?,
        };
        let checkpoint = match (self.checkpoint, &self.from_checkpoint) {
            (None, Some(image)) => Some(Saved::read(&client, image).await?.processes()?),
            (given, _) => given,
        };
        let mut options = self.options.or_else(|| record.runtime.options.clone());
        if self.no_pivot_root {
            options = Some(without_pivot_root(&record.runtime.name, options)?);
        }
        let request = wire::CreateTaskRequest {
            container_id: record.id.clone(),
            rootfs: rootfs.into_iter().map(Into::into).collect(),
            stdin: self.stdio.stdin,
            stdout: self.stdio.stdout,
            stderr: self.stdio.stderr,
            terminal: self.stdio.terminal,
            checkpoint: checkpoint.as_ref().map(descriptor_out),
            options: options.as_ref().map(any_out),
            runtime_path: self.runtime_path,
            ..wire::CreateTaskRequest::default()
        };
        let answer = service!(client, TasksClient)
            .create(client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(Task { process: client.tasks().process(&record.id, ""), pid: answer.pid })
    }
}

/// The options with the wish not to pivot added.
fn without_pivot_root(runtime: &str, options: Option<Any>) -> Result<Any> {
    let Some(options) = options else {
        if runtime == LINUX_RUNTIME {
            return Ok(typeurl::pack(&old::CreateOptions {
                no_pivot_root: true,
                ..Default::default()
            }));
        }
        return Ok(typeurl::pack(&runc::Options { no_pivot_root: true, ..Default::default() }));
    };
    if let Some(new) = typeurl::unpack::<runc::Options>(&options)? {
        return Ok(typeurl::pack(&runc::Options { no_pivot_root: true, ..new }));
    }
    if let Some(old) = typeurl::unpack::<old::CreateOptions>(&options)? {
        return Ok(typeurl::pack(&old::CreateOptions { no_pivot_root: true, ..old }));
    }
    let why = format!("task options {:?}: they cannot say not to pivot", options.type_url);
    Err(Error::invalid_argument(why))
}

impl Deref for Task {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Task {
    /// The process of exec `exec_id`, with its state.
    ///
    /// # Errors
    /// NotFound.
    pub async fn load_process(&self, exec_id: &str) -> Result<Process> {
        let process = Process { exec_id: exec_id.to_owned(), ..self.process.clone() };
        process.state().await?;
        Ok(process)
    }

    /// The same task by another client, such as one with a lease.
    pub(crate) fn under(&self, client: &Client) -> Self {
        let process = Process { client: client.clone(), ..self.process.clone() };
        Self { process, pid: self.pid }
    }

    /// Pid of the container's own process on the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Adds a process; it runs once started. Dropped before the end, it is removed again.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument for a bad id.
    pub async fn exec(
        &self,
        exec_id: &str,
        process: &gantry_oci::Process,
        stdio: &Stdio,
    ) -> Result<Process> {
        let spec = any_out(&typeurl::pack_process(process)?);
        let request = wire::ExecProcessRequest {
            container_id: self.container_id.clone(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            spec: Some(spec),
            exec_id: exec_id.to_owned(),
        };
        let made = Process { exec_id: exec_id.to_owned(), ..self.process.clone() };
        let work = async move {
            service!(made.client, TasksClient)
                .exec(made.client.request(request))
                .await
                .map_err(status)?;
            Ok(made)
        };
        let undo = |process: Process| async move {
            if let Err(e) = process.delete_with_kill().await {
                tracing::debug!(exec = process.exec_id(), error = %e, "exec left");
            }
        };
        make_or_undo(work, undo).await
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// NotFound; an error in the wrong state.
    pub async fn pause(&self) -> Result<()> {
        let container_id = self.container_id.clone();
        service!(self.client, TasksClient)
            .pause(self.client.request(wire::PauseTaskRequest { container_id }))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Thaws the container.
    ///
    /// # Errors
    /// NotFound; an error in the wrong state.
    pub async fn resume(&self) -> Result<()> {
        let container_id = self.container_id.clone();
        service!(self.client, TasksClient)
            .resume(self.client.request(wire::ResumeTaskRequest { container_id }))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// The processes of the container.
    ///
    /// # Errors
    /// NotFound.
    pub async fn pids(&self) -> Result<Vec<PidInfo>> {
        let container_id = self.container_id.clone();
        let answer = service!(self.client, TasksClient)
            .list_pids(self.client.request(wire::ListPidsRequest { container_id }))
            .await
            .map_err(status)?
            .into_inner();
        let info = |p: gantry_api::containerd::v1::types::ProcessInfo| {
            let details = p.info.and_then(|i| i.unpack::<runc::ProcessDetails>().ok().flatten());
            PidInfo { pid: p.pid, exec_id: details.map(|d| d.exec_id).unwrap_or_default() }
        };
        Ok(answer.processes.into_iter().map(info).collect())
    }

    /// Changes the limits of the running container.
    ///
    /// # Errors
    /// NotFound; Unknown with the runtime's text.
    pub async fn update(&self, resources: &LinuxResources) -> Result<()> {
        let request = wire::UpdateTaskRequest {
            container_id: self.container_id.clone(),
            resources: Some(any_out(&typeurl::pack_resources(resources)?)),
            ..wire::UpdateTaskRequest::default()
        };
        service!(self.client, TasksClient)
            .update(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Checkpoints the container; returns what was stored as content, nothing when the options
    /// name an image path.
    ///
    /// # Errors
    /// Unknown with criu's text.
    pub async fn checkpoint(&self, options: &CheckpointOptions) -> Result<Vec<Descriptor>> {
        let request = wire::CheckpointTaskRequest {
            container_id: self.container_id.clone(),
            parent_checkpoint: String::new(),
            options: Some(prost_types::Any::pack(&options.to_wire())),
        };
        let answer = service!(self.client, TasksClient)
            .checkpoint(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        answer.descriptors.into_iter().map(descriptor).collect()
    }

    /// One reading of the container's cgroup.
    ///
    /// # Errors
    /// NotFound; Internal when the daemon gives none.
    pub async fn metrics(&self) -> Result<Metrics> {
        let filters = [format!("id=={}", self.container_id)];
        let found = self.client.tasks().metrics(&filters).await?;
        required(found.into_iter().next(), "metrics")
    }
}

fn decode_metrics(data: prost_types::Any) -> Result<TaskMetrics> {
    if let Some(v1) = data.unpack::<cgroups::v1::Metrics>()? {
        return Ok(TaskMetrics::V1(Box::new(v1)));
    }
    if let Some(v2) = data.unpack::<cgroups::v2::Metrics>()? {
        return Ok(TaskMetrics::V2(Box::new(v2)));
    }
    if data.type_url.is_empty() {
        let name = cgroups::v1::Metrics::type_url_bare();
        return Err(Error::internal(format!("daemon: metrics without a type such as {name}")));
    }
    Ok(TaskMetrics::Other(any(data)))
}
