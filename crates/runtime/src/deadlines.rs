//! How long a shim may take.

use std::time::Duration;

use gantry_core::deadlines as table;

/// Limits on every call to a shim: the `SHIM_` rows of [`gantry_core::deadlines`], of which the
/// configuration's `[timeouts]` may change those that say so.
///
/// `Wait` has none: it ends with the process, or with the connection to the shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Running `<shim> start` to its end; slow only when the disk is.
    pub start_shim: Duration,
    /// Connecting to a shim that has just started.
    pub connect_new: Duration,
    /// Finding a shim of an earlier run: `io.containerd.timeout.shim.load`.
    pub load: Duration,
    /// Running `<shim> delete` to its end: `io.containerd.timeout.shim.cleanup`.
    pub cleanup: Duration,
    /// Waiting for a shim to end when told to: `io.containerd.timeout.shim.shutdown`.
    pub shutdown: Duration,
    /// Asking for state: `io.containerd.timeout.task.state`.
    pub state: Duration,
    /// Asking for metrics: `io.containerd.timeout.metrics.shimstats`.
    pub stats: Duration,
    /// Running `<shim> -v` or `-info` to its end.
    pub info: Duration,
    /// Creating a task; restoring a large checkpoint is part of it.
    pub create: Duration,
    /// Starting a process; hooks of the spec run then.
    pub start: Duration,
    /// Deleting a process; unmounting its root may have to write back.
    pub delete: Duration,
    /// Freezing or thawing; a process in an uninterruptible sleep holds it up.
    pub freeze: Duration,
    /// Writing a checkpoint.
    pub checkpoint: Duration,
    /// Having a shim execute a newer program: it gives the program and itself ten seconds each.
    pub upgrade: Duration,
    /// Everything else that runs the OCI runtime once: kill, update, pids.
    pub runtime: Duration,
    /// Everything the shim answers from memory: exec, resize, close-io, connect.
    pub memory: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start_shim: table::SHIM_LAUNCH,
            connect_new: table::SHIM_CONNECT,
            load: table::SHIM_LOAD,
            cleanup: table::SHIM_CLEANUP,
            shutdown: table::SHIM_SHUTDOWN,
            state: table::SHIM_STATE,
            stats: table::SHIM_STATS,
            info: table::SHIM_INFO,
            create: table::SHIM_CREATE,
            start: table::SHIM_START,
            delete: table::SHIM_DELETE,
            freeze: table::SHIM_FREEZE,
            checkpoint: table::SHIM_CHECKPOINT,
            upgrade: table::SHIM_UPGRADE,
            runtime: table::SHIM_RUNTIME,
            memory: table::SHIM_MEMORY,
        }
    }
}
