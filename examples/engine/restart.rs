//! When a container that ended is started again.

use std::str::FromStr;
use std::time::Duration;

use gantry_client::Error;
use serde::{Deserialize, Serialize};

/// The first pause before a restart; each following one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// When to start again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Policy {
    /// Never.
    No,
    /// Always, unless it was stopped.
    Always,
    /// After a failure, this many times.
    OnFailure(u32),
}

impl Policy {
    /// The pause before the next start, or None for no start. `restarts` is how many there were.
    pub(crate) fn next(self, code: u32, restarts: u32) -> Option<Duration> {
        let again = match self {
            Self::No => false,
            Self::Always => true,
            Self::OnFailure(most) => code != 0 && restarts < most,
        };
        again.then(|| (PAUSE_FIRST * 2_u32.saturating_pow(restarts.min(16))).min(PAUSE_MAX))
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::invalid_argument(format!("restart policy {text:?}"));
        Ok(match text.split_once(':') {
            None if text == "no" => Self::No,
            None if text == "always" => Self::Always,
            Some(("on-failure", most)) => Self::OnFailure(most.parse().map_err(|_| bad())?),
            _ => return Err(bad()),
        })
    }
}
