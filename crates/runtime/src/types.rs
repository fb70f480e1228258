//! What is said about tasks, in plain types.

use std::time::SystemTime;

use gantry_core::Any;
use gantry_mount::Mount;

/// The exit status of a process whose own is not known: its shim died.
pub const UNKNOWN_EXIT_STATUS: u32 = 255;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// The shim does not say.
    #[default]
    Unknown,
    /// Set up, not started.
    Created,
    /// Started.
    Running,
    /// Ended; its exit status is known.
    Stopped,
    /// Frozen.
    Paused,
    /// Being frozen.
    Pausing,
}

/// The standard streams of a process: paths of fifos, or URIs (`file://`, `binary://`); empty is
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Read by the process.
    pub stdin: String,
    /// Written by the process.
    pub stdout: String,
    /// Written by the process; unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// What a shim says of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Where it is in its life.
    pub status: Status,
    /// Its pid as the daemon sees it; 0 before it exists.
    pub pid: u32,
    /// Its exit status once it has stopped: 128 + signal when a signal ended it.
    pub exit_status: u32,
    /// When it stopped.
    pub exited_at: Option<SystemTime>,
    /// Its streams, for a client that attaches later.
    pub io: Io,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its pid; 0 when it is not known any more.
    pub pid: u32,
    /// Its status: 128 + signal when a signal ended it, [`UNKNOWN_EXIT_STATUS`] when nobody knows.
    pub status: u32,
    /// When it ended.
    pub exited_at: Option<SystemTime>,
}

/// One process in a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its pid as the daemon sees it.
    pub pid: u32,
    /// What the shim adds, such as the exec id.
    pub info: Option<Any>,
}

/// What a task is made of.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// The runtime spec; its bytes become `config.json` untouched.
    pub spec: Any,
    /// Mounts that the shim makes on the bundle's `rootfs`, in order.
    pub rootfs: Vec<Mount>,
    /// Streams of the first process.
    pub io: Io,
    /// Directory of a checkpoint to restore from; empty for none.
    pub checkpoint: String,
    /// The checkpoint's directory is the task's from now on: it is moved to where the task keeps
    /// its files, and goes with it. A shim reads it no sooner than the task is started.
    pub take_checkpoint: bool,
    /// The runtime's name (`io.containerd.runc.v2`) or the absolute path of a shim.
    pub runtime: String,
    /// Options of the container record; also given to the shim when it starts.
    pub runtime_options: Option<Any>,
    /// Options of this task; where there are none the runtime's serve.
    pub task_options: Option<Any>,
    /// The pod whose shim hosts the task; empty for a shim of its own.
    pub sandbox_id: String,
    /// Address and version of a task API that runs already: no shim is started.
    pub task_api: Option<(String, u32)>,
}

/// What an additional process is made of.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// The process spec as JSON, untouched.
    pub spec: Option<Any>,
    /// Its streams.
    pub io: Io,
}
