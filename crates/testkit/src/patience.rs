//! Waiting for a state instead of sleeping, and seeds.

use std::time::{Duration, Instant};

/// How long [`eventually`] waits unless `GANTRY_TEST_PATIENCE_SECS` says otherwise.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Looks again and again until `probe` returns a value.
///
/// # Panics
/// When patience ends, with `what` and the last reason `probe` gave.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    let patience = std::env::var("GANTRY_TEST_PATIENCE_SECS")
        .ok()
        .and_then(|s| s.parse().ok())
        .map_or(PATIENCE, Duration::from_secs);
    eventually_within(patience, what, probe)
}

/// As [`eventually`], with the patience given.
///
/// # Panics
/// When patience ends, with `what` and the last reason `probe` gave.
pub fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) if Instant::now() >= deadline => {
                panic!("{what}: not within {patience:?}: {why}")
            }
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// The seed of a random test: `GANTRY_TEST_SEED`, or a fresh one. It is printed, so that a
/// failure's captured output tells how to repeat it.
pub fn seed() -> u64 {
    let seed = std::env::var("GANTRY_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    eprintln!("repeat with GANTRY_TEST_SEED={seed}");
    seed
}
