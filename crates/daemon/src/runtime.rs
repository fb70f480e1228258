//! The tokio runtime: few workers and a bounded pool for blocking work.

use std::time::Duration;

use gantry_errdefs::{Error, Result};
use tokio::runtime::{Builder, Runtime};

/// Workers for everything that does not block. The daemon waits on others nearly all the time;
/// more workers would cost memory and gain nothing.
const WORKERS_MIN: usize = 2;
const WORKERS_MAX: usize = 4;

/// Threads for blocking work (files, mounts, decompression). Each may be held by a slow disk;
/// work beyond waits in line.
const BLOCKING_THREADS_MAX: usize = 64;

/// How long an idle blocking thread is kept: its stack counts as our memory.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The daemon's runtime.
///
/// # Errors
/// When threads cannot be started.
pub fn build() -> Result<Runtime> {
    let workers = std::thread::available_parallelism().map_or(WORKERS_MIN, usize::from);
    Builder::new_multi_thread()
        .worker_threads(workers.clamp(WORKERS_MIN, WORKERS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .thread_name("gantryd")
        .enable_all()
        .build()
        .map_err(|e| Error::io("runtime", e))
}

/// A runtime on this thread alone, for subcommands that make one call.
///
/// # Errors
/// When it cannot be set up.
pub fn build_small() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().map_err(|e| Error::io("runtime", e))
}
