//! How long a shim may take.

use std::time::Duration;

/// Limits on every call to a shim, in one place. Names with an entry in the configuration's
/// `[timeouts]` say so; the others are ours, and generous: they only have to keep a shim that
/// never answers from holding a caller for ever.
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
        let secs = Duration::from_secs;
        Self {
            start_shim: secs(60),
            connect_new: secs(5),
            load: secs(5),
            cleanup: secs(5),
            shutdown: secs(3),
            state: secs(2),
            stats: secs(2),
            info: secs(5),
            create: secs(300),
            start: secs(120),
            delete: secs(60),
            freeze: secs(30),
            checkpoint: secs(600),
            upgrade: secs(40),
            runtime: secs(30),
            memory: secs(10),
        }
    }
}
