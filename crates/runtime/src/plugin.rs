//! The seam between services and whatever runs tasks.
//!
//! An embedder brings a runtime of its own by implementing [`Runtime`] and [`Task`] and giving it
//! to the daemon (`gantry_daemon::Daemon::builder`): services ask nothing else.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_core::{Any, Namespace};
use gantry_errdefs::Result;
use gantry_events::Exchange;

use crate::{CreateOptions, ExecOptions, Exit, ProcessInfo, State};

/// Where a runtime says what happens to its tasks: to the daemon's subscribers.
#[derive(Clone, Debug)]
pub struct EventSink {
    exchange: Exchange,
}

impl EventSink {
    /// The way to the subscribers of `exchange`.
    pub fn new(exchange: Exchange) -> Self {
        Self { exchange }
    }

    /// Publishes an event, such as a `containerd.events.TaskExit` under `/tasks/exit`.
    ///
    /// # Errors
    /// InvalidArgument for a topic that is not a path.
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: Any) -> Result<()> {
        self.exchange.publish(namespace, topic, event)
    }
}

/// Something that runs tasks.
///
/// Ids are unique within a namespace. Every method may be dropped half way: what it has begun is
/// finished or undone in the background, never left in between.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The plugin id, such as `task`.
    fn id(&self) -> &'static str;

    /// Takes the way for the events of tasks: creation, start, exit and deletion at least, each
    /// told once and in this order. The daemon calls it once, before anything else. A runtime
    /// that was made with a way of its own may leave this out.
    fn events(&self, sink: EventSink) {
        drop(sink);
    }

    /// Creates a task: its namespaces exist and it has a pid, but its program does not run yet.
    ///
    /// # Errors
    /// AlreadyExists when the id is taken; InvalidArgument for a bad id or runtime name; Unknown
    /// with the runtime's own words when it failed. Nothing is left behind then.
    async fn create(
        &self,
        namespace: &Namespace,
        id: &str,
        options: CreateOptions,
    ) -> Result<Arc<dyn Task>>;

    /// The task `id`. While the daemon is still looking for the shims of an earlier run this
    /// waits for the one asked for, at most as long as its deadline.
    ///
    /// # Errors
    /// NotFound: `task <id> not found`.
    async fn get(&self, namespace: &Namespace, id: &str) -> Result<Arc<dyn Task>>;

    /// All tasks of `namespace`, or of all namespaces, in no order.
    ///
    /// # Errors
    /// None today; an implementation may fail to list.
    async fn tasks(&self, namespace: Option<&Namespace>) -> Result<Vec<Arc<dyn Task>>>;

    /// Deletes a stopped task and everything that belonged to it, and says how it ended.
    ///
    /// # Errors
    /// NotFound; Unknown with the shim's words when the task still runs.
    async fn delete(&self, namespace: &Namespace, id: &str) -> Result<Exit>;
}

/// One task. State is always asked of the shim, never remembered.
///
/// An `exec` of `""` means the first process, any other an additional one by its id. Errors of
/// the shim pass through with class and text; beside them every method may give NotFound when
/// the shim has died, Unavailable when it dies meanwhile and DeadlineExceeded when it does not
/// answer in time ([`Deadlines`](crate::Deadlines)).
#[async_trait]
pub trait Task: Send + Sync {
    /// The id, equal to the container's.
    fn id(&self) -> &str;

    /// The namespace.
    fn namespace(&self) -> &Namespace;

    /// The bundle directory.
    fn bundle(&self) -> &Path;

    /// The pod whose shim hosts the task; empty when it has one of its own.
    fn sandbox_id(&self) -> &str;

    /// Whether the shim failed to answer the last call to it in time.
    fn is_degraded(&self) -> bool;

    /// The pid of the first process.
    async fn pid(&self) -> Result<u32>;

    /// The state of a process.
    async fn state(&self, exec: &str) -> Result<State>;

    /// Starts a process and returns its pid.
    async fn start(&self, exec: &str) -> Result<u32>;

    /// Sends a signal to a process, or with `all` to every process of the task.
    async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<()>;

    /// Registers an additional process; [`Task::start`] runs it.
    async fn exec(&self, exec: &str, options: ExecOptions) -> Result<()>;

    /// Deletes a stopped additional process and says how it ended.
    async fn delete_process(&self, exec: &str) -> Result<Exit>;

    /// Waits for the end of a process, without a limit. If the shim dies meanwhile the first
    /// process gets the exit that cleaning up finds.
    async fn wait(&self, exec: &str) -> Result<Exit>;

    /// Sets the size of a process's terminal, in characters.
    async fn resize(&self, exec: &str, width: u32, height: u32) -> Result<()>;

    /// Closes the stdin of a process if `stdin`.
    async fn close_io(&self, exec: &str, stdin: bool) -> Result<()>;

    /// Freezes all processes.
    async fn pause(&self) -> Result<()>;

    /// Thaws all processes.
    async fn resume(&self) -> Result<()>;

    /// All processes, also those that the task's own started.
    async fn pids(&self) -> Result<Vec<ProcessInfo>>;

    /// Writes a checkpoint of the task into the directory `path`.
    async fn checkpoint(&self, path: &Path, options: Option<Any>) -> Result<()>;

    /// Changes the resource limits.
    async fn update(
        &self,
        resources: Option<Any>,
        annotations: HashMap<String, String>,
    ) -> Result<()>;

    /// The task's metrics, as the shim packs them; none when it has none to give.
    async fn stats(&self) -> Result<Option<Any>>;
}
