//! The plan of this process.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{LOG_ENV, PLAN_ENV, POINTS};

static PLAN: OnceLock<Plan> = OnceLock::new();

/// What is to happen where.
#[derive(Debug, Default)]
struct Plan {
    entries: Vec<Entry>,
    log: Option<File>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    action: Action,
    /// The first time it acts, from 1.
    first: u64,
    /// Also at later times.
    ever_after: bool,
    reached: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Error,
    Abort,
    Delay(Duration),
}

pub(crate) fn hit(name: &'static str) -> io::Result<()> {
    debug_assert!(POINTS.contains(&name), "failpoint {name} is not in the list of all");
    let plan = PLAN.get_or_init(Plan::of_environment);
    if plan.entries.is_empty() {
        return Ok(());
    }
    match plan.action(name) {
        None => Ok(()),
        Some(action) => plan.carry_out(name, action),
    }
}

impl Plan {
    fn of_environment() -> Self {
        let Ok(text) = std::env::var(PLAN_ENV) else { return Self::default() };
        let log = std::env::var_os(LOG_ENV)
            .and_then(|path| File::options().create(true).append(true).open(path).ok());
        match Self::parse(&text) {
            Ok(entries) => Self { entries, log },
            Err(why) => {
                // A test with a plan that does nothing would pass for the wrong reason.
                let _ = writeln!(io::stderr(), "{PLAN_ENV}: {why}");
                std::process::abort();
            }
        }
    }

    fn parse(text: &str) -> Result<Vec<Entry>, String> {
        text.split(';').filter(|entry| !entry.trim().is_empty()).map(Entry::parse).collect()
    }

    fn action(&self, name: &str) -> Option<Action> {
        self.entries.iter().filter(|entry| entry.name == name).find_map(Entry::reach)
    }

    fn carry_out(&self, name: &str, action: Action) -> io::Result<()> {
        if let Some(mut log) = self.log.as_ref() {
            // One write, so that lines of several processes do not mix.
            let _ = log.write_all(format!("{name} {action:?}\n").as_bytes());
        }
        match action {
            Action::Error => Err(io::Error::other(format!("failpoint {name}"))),
            Action::Abort => std::process::abort(),
            Action::Delay(time) => {
                std::thread::sleep(time);
                Ok(())
            }
        }
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{text:?}: {why}");
        let (name, action) = text.trim().split_once('=').ok_or_else(|| bad("no ="))?;
        if !POINTS.contains(&name) {
            return Err(bad("no such failpoint"));
        }
        let (action, time) = action.split_once('@').unwrap_or((action, "1"));
        let (first, ever_after) = match time.strip_suffix('+') {
            Some(first) => (first, true),
            None => (time, false),
        };
        let first = first.parse().map_err(|_| bad("no number behind @"))?;
        let action = match action.split_once(':') {
            None if action == "error" => Action::Error,
            None if action == "abort" => Action::Abort,
            Some(("delay", ms)) => {
                let ms = ms.parse().map_err(|_| bad("no number of milliseconds"))?;
                Action::Delay(Duration::from_millis(ms))
            }
            _ => return Err(bad("no such action")),
        };
        let reached = AtomicU64::new(0);
        Ok(Self { name: name.to_owned(), action, first, ever_after, reached })
    }

    /// Counts, and tells whether this is the time.
    fn reach(&self) -> Option<Action> {
        let time = self.reached.fetch_add(1, Ordering::Relaxed) + 1;
        let now = time == self.first || self.ever_after && time > self.first;
        now.then_some(self.action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        Plan { entries: Plan::parse(text).unwrap(), log: None }
    }

    #[test]
    fn acts_at_its_time_only() {
        let plan = plan("store.commit=error@2;store.log=error@2+; bundle.spec=delay:0");
        let commits: Vec<bool> = (0..4).map(|_| plan.action("store.commit").is_some()).collect();
        assert_eq!(commits, [false, true, false, false]);
        let logs: Vec<bool> = (0..4).map(|_| plan.action("store.log").is_some()).collect();
        assert_eq!(logs, [false, true, true, true]);
        assert_eq!(plan.action("bundle.spec"), Some(Action::Delay(Duration::ZERO)));
        assert_eq!(plan.action("bundle.create"), None);
    }

    #[test]
    fn an_error_names_its_place() {
        let err = plan("").carry_out("store.commit", Action::Error).unwrap_err();
        assert_eq!(err.to_string(), "failpoint store.commit");
    }

    #[test]
    fn a_bad_plan_is_refused() {
        for text in ["x", "no.such=error", "store.commit=explode", "store.commit=error@x"] {
            Plan::parse(text).unwrap_err();
        }
    }

    #[test]
    fn names_are_used_once() {
        let mut names = POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
    }
}
