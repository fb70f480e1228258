//! Docker's rules, without any I/O: what is to be done about a container as it is found.

use std::str::FromStr;

use gantry_errdefs::{Error, Result};

use crate::labels::{Desired, Wish};

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Never.
    No,
    /// Always, but not after its user has stopped it; then again when the daemon starts. What a
    /// container without a policy gets.
    Always,
    /// When it failed, at most this often in a row (none: without a limit).
    OnFailure(Option<u32>),
    /// As always, but one that its user has stopped stays so when the daemon starts.
    UnlessStopped,
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::invalid_argument(format!("restart policy {text:?}"));
        let (name, limit) = match text.split_once(':') {
            Some((name, limit)) => (name, Some(limit)),
            None => (text, None),
        };
        match (name, limit) {
            ("" | "always", None) => Ok(Self::Always),
            ("no", None) => Ok(Self::No),
            ("unless-stopped", None) => Ok(Self::UnlessStopped),
            ("on-failure", None) => Ok(Self::OnFailure(None)),
            ("on-failure", Some(limit)) => {
                let limit: u32 = limit.parse().map_err(|_| unknown())?;
                // Docker's zero is no limit.
                Ok(Self::OnFailure((limit > 0).then_some(limit)))
            }
            _ => Err(unknown()),
        }
    }
}

/// What is found of a container's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Absent,
    /// It was created and does not run yet.
    Created,
    /// It runs, or is frozen.
    Alive {
        /// Its pid.
        pid: u32,
    },
    /// It has ended.
    Ended {
        /// How: 128 + signal when a signal ended it.
        status: u32,
    },
    /// Its shim does not say.
    Unclear,
}

/// Why a container is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Something happened to it.
    Event,
    /// The daemon has started and looks at everything.
    DaemonStart,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Leave,
    /// Start it, after the pause that is due.
    Start,
    /// Start it, unless its client does so in a while: it was just created, or its task was
    /// deleted and it may follow.
    StartLater,
    /// Kill its task, unless its client ends it in a while.
    StopLater,
}

/// What is to be done about a container that is found as `seen`.
pub fn decide(wish: &Wish, seen: Seen, occasion: Occasion) -> Verdict {
    match (wish.desired, seen) {
        (Desired::Other, _) | (_, Seen::Unclear) => Verdict::Leave,
        (Desired::Stopped, Seen::Alive { .. }) => Verdict::StopLater,
        (Desired::Stopped, _) | (Desired::Running, Seen::Alive { .. }) => Verdict::Leave,
        (Desired::Running, Seen::Created) => match occasion {
            // Its client is about to start it.
            Occasion::Event => Verdict::Leave,
            // Its client may have been this daemon, which was killed half way.
            Occasion::DaemonStart => Verdict::StartLater,
        },
        (Desired::Running, Seen::Absent) => match (wants(wish, None, occasion), occasion) {
            (false, _) => Verdict::Leave,
            (true, Occasion::Event) => Verdict::StartLater,
            (true, Occasion::DaemonStart) => Verdict::Start,
        },
        (Desired::Running, Seen::Ended { status }) => {
            if wants(wish, Some(status), occasion) {
                Verdict::Start
            } else {
                Verdict::Leave
            }
        }
    }
}

/// Whether a container that does not run is to be started, given how it ended if that is known.
fn wants(wish: &Wish, status: Option<u32>, occasion: Occasion) -> bool {
    match wish.policy {
        Policy::No => false,
        Policy::Always => !wish.explicitly_stopped || occasion == Occasion::DaemonStart,
        Policy::UnlessStopped => !wish.explicitly_stopped,
        Policy::OnFailure(limit) => {
            let failed = status.is_some_and(|status| status != 0);
            failed && !wish.explicitly_stopped && limit.is_none_or(|limit| wish.count < limit)
        }
    }
}
