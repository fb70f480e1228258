//! How long the parts of a task's life take.
//!
//! Each part is a span and, at its end, a line of the log at debug level:
//! `phase="bundle" micros=412`. Shims say the same of theirs. `gantry-bench` makes a table of them.

use std::future::Future;
use std::time::Instant;

use tracing::Instrument as _;

/// Does `work` as the phase `name` of the task `id`.
pub(crate) async fn phase<T>(id: &str, name: &'static str, work: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let done = work.instrument(tracing::debug_span!("phase", id, name)).await;
    let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(target: "gantry_runtime::phase", id, phase = name, micros);
    done
}
