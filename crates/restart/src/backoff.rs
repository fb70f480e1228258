//! Pauses between restarts.

use std::time::Duration;

/// The pause before the second restart in a row; Docker's first.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// No pause is longer; Docker's longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A container that ran this long is well again; Docker's time.
const WELL_AFTER: Duration = Duration::from_secs(10);

/// How long to wait before a container is started again. The first restart comes at once, then
/// the pause doubles with each that comes soon after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The pause after a container ended that had run for `ran`; none when nobody knows.
    pub fn pause(&mut self, ran: Option<Duration>) -> Duration {
        if ran.is_none_or(|ran| ran >= WELL_AFTER) {
            self.reset();
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        pause
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.next = Duration::ZERO;
    }
}
