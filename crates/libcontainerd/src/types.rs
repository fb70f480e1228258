//! What an engine is told, and what it implements to be told.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use gantry_client::TaskMetrics;
use gantry_errdefs::{Error, Result};

/// How the flat form calls a container's own process.
pub const INIT_PROCESS: &str = "init";

/// The label by which an engine finds a container's bundle directory again.
pub const BUNDLE_LABEL: &str = "com.docker/engine.bundle.path";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Something this library does not know.
    Unknown,
    /// A process ended: the container's own, or an exec.
    Exit,
    /// The kernel killed a process of the container for want of memory.
    Oom,
    /// The container's own process was made.
    Create,
    /// The container's own process runs.
    Start,
    /// An exec was added.
    ExecAdded,
    /// An exec runs.
    ExecStarted,
    /// The container was frozen.
    Paused,
    /// The container was thawed.
    Resumed,
}

impl EventType {
    /// The name, as Moby writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Exit => "exit",
            Self::Oom => "oom",
            Self::Create => "create",
            Self::Start => "start",
            Self::ExecAdded => "exec-added",
            Self::ExecStarted => "exec-started",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The particulars of an event.
#[derive(Clone, Debug, Default)]
pub struct EventInfo {
    /// The container.
    pub container_id: String,
    /// The exec; the container's own id for its own process.
    pub process_id: String,
    /// Pid on the host; 0 where the event is about no process.
    pub pid: u32,
    /// Exit code, 128 + signal for a process that was killed.
    pub exit_code: u32,
    /// When it ended.
    pub exited_at: Option<SystemTime>,
    /// Whether the kernel had killed for want of memory in this run of the container.
    pub oom_killed: bool,
    /// Why the exit code is not known, when it is not.
    pub error: Option<Arc<Error>>,
}

/// The engine, as far as this library knows it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Takes in an event. Calls for one container come one after the other, in order; calls for
    /// different containers come side by side. An error is logged and changes nothing.
    ///
    /// # Errors
    /// The engine's own.
    async fn process_event(
        &self,
        container_id: &str,
        event: EventType,
        info: EventInfo,
    ) -> Result<()>;
}

/// A reading of a container's cgroup.
#[derive(Clone, Debug)]
pub struct Stats {
    /// When.
    pub read: SystemTime,
    /// The values.
    pub metrics: TaskMetrics,
}

/// A process in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Pid on the host.
    pub pid: u32,
    /// The exec it is; empty for others.
    pub exec_id: String,
}

/// What was found of a container after the engine was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Whether its own process lives.
    pub alive: bool,
    /// Pid of that process on the host; 0 when there is none.
    pub pid: u32,
}
