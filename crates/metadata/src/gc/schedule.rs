//! When the collector runs by itself.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Gc, GcConfig, GcState};
use crate::db::{Db, Shared};

/// Something was deleted, and too little else happened to reach a threshold: collect after this.
const IDLE_DELAY: Duration = Duration::from_secs(10);

/// Longest sleep: the clock on the wall may jump, and expiry goes by it.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// Weight of the newest run in the average that paces them.
const PACE_WEIGHT: f64 = 0.25;

/// Least `pause_threshold`: a run takes at most one part in a thousand of the time then.
const PAUSE_THRESHOLD_MIN: f64 = 0.001;

/// Greatest `pause_threshold`.
const PAUSE_THRESHOLD_MAX: f64 = 0.5;

/// Starts the task. It holds the store only while it works.
pub(super) fn start(db: &Db) {
    let store = Arc::downgrade(&db.shared);
    let wake = Arc::clone(&db.shared.gc.wake);
    let config = db.shared.gc.config.clone();
    tokio::spawn(async move {
        tokio::time::sleep(config.startup_delay).await;
        if !reconcile(&store).await {
            return;
        }
        let mut pace = Pace::new(&config);
        let mut idle_at = None;
        let mut due = true;
        loop {
            if due {
                tokio::time::sleep(config.schedule_delay).await;
                tokio::time::sleep_until(pace.next).await;
                if !run(&store, &mut pace).await {
                    return;
                }
                idle_at = None;
            }
            let Some(shared) = store.upgrade() else { return };
            let sleep = until_due(&shared.gc, &mut idle_at);
            drop(shared);
            // Woken by a write that may be one too many, or by time.
            let _ = tokio::time::timeout(sleep, wake.notified()).await;
            let Some(shared) = store.upgrade() else { return };
            due = is_due(&shared.gc, &mut idle_at);
        }
    });
}

/// False when the store has gone.
async fn reconcile(store: &Weak<Shared>) -> bool {
    let Some(shared) = store.upgrade() else { return false };
    if let Err(err) = Gc::new(Db { shared }).reconcile().await {
        tracing::error!("comparing records with what is stored: {err}");
    }
    true
}

/// False when the store has gone.
async fn run(store: &Weak<Shared>, pace: &mut Pace) -> bool {
    let Some(shared) = store.upgrade() else { return false };
    match Gc::new(Db { shared }).run().await {
        Ok(stats) => pace.ran(stats.elapsed),
        Err(err) => {
            tracing::error!("garbage collection failed: {err}");
            pace.ran(IDLE_DELAY);
        }
    }
    true
}

fn until_due(state: &GcState, idle_at: &mut Option<Instant>) -> Duration {
    let mut sleep = SLEEP_MAX;
    if let Some(at) = expiry(state) {
        sleep = sleep.min(at.duration_since(SystemTime::now()).unwrap_or_default());
    }
    if state.deletions.load(Ordering::Acquire) > 0 {
        let at = *idle_at.get_or_insert_with(|| Instant::now() + IDLE_DELAY);
        sleep = sleep.min(at.saturating_duration_since(Instant::now()));
    }
    sleep
}

fn is_due(state: &GcState, idle_at: &mut Option<Instant>) -> bool {
    let config = &state.config;
    let reached = |count: u32, threshold: u32| threshold > 0 && count >= threshold;
    reached(state.mutations.load(Ordering::Acquire), config.mutation_threshold)
        || reached(state.deletions.load(Ordering::Acquire), config.deletion_threshold)
        || expiry(state).is_some_and(|at| at <= SystemTime::now())
        || idle_at.is_some_and(|at| at <= Instant::now())
}

fn expiry(state: &GcState) -> Option<SystemTime> {
    match state.expiry_nanos.load(Ordering::Acquire) {
        u64::MAX => None,
        nanos => SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)),
    }
}

/// Keeps the share of time that runs take below the threshold.
struct Pace {
    threshold: f64,
    average: Option<Duration>,
    next: Instant,
}

impl Pace {
    fn new(config: &GcConfig) -> Self {
        let threshold = config.pause_threshold.clamp(PAUSE_THRESHOLD_MIN, PAUSE_THRESHOLD_MAX);
        Self { threshold, average: None, next: Instant::now() }
    }

    fn ran(&mut self, elapsed: Duration) {
        let average = match self.average {
            None => elapsed,
            Some(average) => average.mul_f64(1.0 - PACE_WEIGHT) + elapsed.mul_f64(PACE_WEIGHT),
        };
        self.average = Some(average);
        self.next = Instant::now() + average.mul_f64(1.0 / self.threshold - 1.0);
    }
}
