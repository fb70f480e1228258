//! Keeping the resident memory of an idle daemon low.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::debug;

/// How often the process looks whether there is something to give back.
const TICK: Duration = Duration::from_secs(5);

/// How long after the start its code is unmapped: what runs once has run by then.
const STARTED: Duration = Duration::from_secs(1);

/// CPU time after which a trim is worth its own cost, which is some milliseconds.
const WORTH_CPU: Duration = Duration::from_millis(100);

/// A tick with less CPU time than this was spent idle.
const IDLE_CPU: Duration = Duration::from_millis(5);

/// Sets up the allocator; to be called before the first thread is started.
pub fn tune() {
    gantry_sys::memory::tune_allocator();
}

/// Gives back what start-up needed and then, again and again, what requests left. Never ends.
pub async fn keep_low() {
    tokio::time::sleep(STARTED).await;
    give_back(true).await;
    let (mut trimmed_at, mut before) = (cpu_time(), cpu_time());
    let mut worked = false;
    loop {
        tokio::time::sleep(TICK).await;
        let now = cpu_time();
        let idle = now.saturating_sub(before) < IDLE_CPU;
        worked |= !idle;
        if idle && worked {
            // A burst is over: what it needed, the next one may fetch again.
            give_back(true).await;
            (worked, trimmed_at) = (false, cpu_time());
        } else if now.saturating_sub(trimmed_at) >= WORTH_CPU {
            give_back(false).await;
            trimmed_at = cpu_time();
        }
        before = cpu_time();
    }
}

async fn give_back(code: bool) {
    let work = move || {
        gantry_sys::memory::trim_heap();
        if code && let Err(err) = gantry_sys::memory::release_code() {
            debug!(%err, "start-up code stays in memory");
        }
    };
    // It fails when the runtime is ending, and then nothing matters.
    let _ = tokio::task::spawn_blocking(work).await;
}

/// CPU time this process has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
