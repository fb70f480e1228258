//! Sparing container starts a wait of the kernel.
//!
//! Moving a process into a cgroup by `cgroup.procs` takes `cgroup_threadgroup_rwsem` for writing.
//! The first writer after a quiet time waits for a grace period of RCU (9 ms of a start's 34 ms,
//! measured with runc on two cores); later ones do not, until a grace period has passed without
//! any. The OCI runtime moves each init at a point where nothing else is left to do. So while a
//! task is created, a thread makes a move that changes nothing, of itself to where it is: its wait
//! for the kernel passes beside the start of the shim and the runtime.
//!
//! This is an optimisation only: where the own cgroup cannot be written to, starts take their time.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two moves: less than the shortest grace period, of two ticks at 250 Hz.
const PAUSE: Duration = Duration::from_millis(4);
/// A creation that takes longer waits for something else, such as a checkpoint or hooks.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// Counts the tasks that are being created. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attaches(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when the last creation has ended.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    creations: usize,
    /// The latest begin of a creation; none before the first.
    begun: Option<Instant>,
    /// Whether the thread runs.
    moving: bool,
}

/// A task that is being created, until dropped.
#[derive(Debug)]
pub(crate) struct Creation(Attaches);

impl Attaches {
    /// Says that a process will soon be moved into a cgroup.
    pub(crate) fn begin(&self) -> Creation {
        let mut state = self.state();
        state.creations += 1;
        state.begun = Some(Instant::now());
        if !state.moving {
            let this = self.clone();
            let thread = std::thread::Builder::new().name("cgroup-attach".to_owned());
            state.moving = thread.stack_size(64 * 1024).spawn(move || this.run()).is_ok();
        }
        Creation(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut procs = own_procs();
        let mut state = self.state();
        loop {
            let busy = state.begun.is_some_and(|begun| begun.elapsed() < BUSY_MAX);
            if state.creations == 0 || !busy || procs.is_none() {
                state.moving = false;
                return;
            }
            drop(state);
            // 0 is the writer.
            if procs.as_mut().is_some_and(|file| file.write_all(b"0").is_err()) {
                procs = None;
            }
            let waited = self.0.done.wait_timeout(self.state(), PAUSE);
            state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.creations -= 1;
        if state.creations == 0 {
            self.0.0.done.notify_all();
        }
    }
}

/// `cgroup.procs` of the first own cgroup that can be written to. Any hierarchy serves: the
/// semaphore is one for all.
fn own_procs() -> Option<File> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    candidates(&own).find_map(|path| OpenOptions::new().write(true).open(path).ok())
}

/// Where the files of `/proc/self/cgroup`'s cgroups are, by convention; cgroups(7).
fn candidates(own: &str) -> impl Iterator<Item = String> + '_ {
    own.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let path = path.trim_end_matches('/');
        let roots = match controllers.strip_prefix("name=").unwrap_or(controllers) {
            "" => vec!["/sys/fs/cgroup".to_owned(), "/sys/fs/cgroup/unified".to_owned()],
            name => vec![format!("/sys/fs/cgroup/{name}")],
        };
        roots.into_iter().map(move |root| format!("{root}{path}/cgroup.procs"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_generations() {
        let found: Vec<_> = candidates("7:cpu,cpuacct:/a\n1:name=systemd:/\n0::/b/c\n").collect();
        let want = [
            "/sys/fs/cgroup/cpu,cpuacct/a/cgroup.procs",
            "/sys/fs/cgroup/systemd/cgroup.procs",
            "/sys/fs/cgroup/b/c/cgroup.procs",
            "/sys/fs/cgroup/unified/b/c/cgroup.procs",
        ];
        assert_eq!(found, want);
        assert_eq!(candidates("").count(), 0);
    }

    #[test]
    fn root_moves_while_tasks_are_created_and_nothing_moves() {
        let before = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let attaches = Attaches::default();
        let (one, two) = (attaches.begin(), attaches.begin());
        assert!(attaches.state().moving);
        drop(one);
        assert_eq!(attaches.state().creations, 1);
        drop(two);
        let begin = Instant::now();
        while attaches.state().moving {
            assert!(begin.elapsed() < Duration::from_secs(30), "the thread goes on");
            std::thread::sleep(PAUSE);
        }
        assert_eq!(std::fs::read_to_string("/proc/self/cgroup").unwrap(), before);
        let again = attaches.begin();
        assert!(attaches.state().moving);
        drop(again);
    }
}
