//! Child processes: the one place that starts them and the one place that reaps them.
//!
//! The serving process is a child subreaper, so besides the runtime calls it makes, every process
//! of its containers ends up as its child. One loop waits for `SIGCHLD` and reaps all of them.
//!
//! Two kinds of children are told about:
//! - those spawned here ([`Reaper::spawn`]): registered before the loop can run again, since
//!   everything runs on one thread;
//! - those the runtime made ([`Adoption::adopt`]): they may exit before their pid is known. While an
//!   [`Adoption`] is open, exits of unknown children are kept, and adopting such a pid completes at
//!   once with the exit that was seen.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Exits of unknown children kept while a runtime call is in flight. One call leaves a handful
/// behind (hooks, helpers); past this the oldest is forgotten, and with it at worst one exit code.
const STRAYS_MAX: usize = 256;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// Completes when the process has exited.
pub type Exited = oneshot::Receiver<Exit>;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Reaper {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Exits stay with the kernel.
    held: bool,
    known: HashMap<u32, oneshot::Sender<Exit>>,
    adoptions: usize,
    strays: Vec<(u32, Exit)>,
}

impl Reaper {
    /// A reaper with nothing to wait for; [`Reaper::run`] must be running for exits to be told.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Starts `command`. Its exit is never lost and never left a zombie, whether or not the
    /// receiver is kept.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub fn spawn(&self, command: &mut Command) -> std::io::Result<(u32, Exited)> {
        command.env_remove(gantry_sys::memory::FRUGAL_ENV.0);
        let mut inner = self.lock();
        // Dropping `Child` neither waits nor kills.
        let pid = command.spawn()?.id();
        Ok((pid, inner.watch(pid)))
    }

    /// Opens a window in which exits of unknown children are remembered; open it before the
    /// runtime call that will make the child.
    pub fn adoption(self: &Arc<Self>) -> Adoption {
        self.lock().adoptions += 1;
        Adoption { reaper: self.clone() }
    }

    /// Reaps children for as long as the process lives.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub async fn run(self: Arc<Self>) -> std::io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Leaves exits to the kernel from now on: none is told.
    pub(crate) fn hold(&self) {
        self.lock().held = true;
    }

    /// Tells exits again, also those since [`Reaper::hold`].
    pub(crate) fn release(&self) {
        self.lock().held = false;
        self.reap();
    }

    /// Watches a child that the program before this one in this process has had; call it before
    /// [`Reaper::run`] does anything.
    pub(crate) fn resume(&self, pid: u32) -> Exited {
        self.lock().watch(pid)
    }

    fn reap(&self) {
        if self.lock().held {
            return;
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.note(pid, status),
                Err(rustix::io::Errno::INTR) => {}
                // No child has exited, or there is none at all.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn note(&self, pid: Pid, status: WaitStatus) {
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => return,
        };
        let exit = Exit { status: code.unsigned_abs(), at: SystemTime::now() };
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        let mut inner = self.lock();
        if let Some(waiter) = inner.known.remove(&pid) {
            // Nobody may be interested any more.
            let _ = waiter.send(exit);
        } else if inner.adoptions > 0 {
            if inner.strays.len() == STRAYS_MAX {
                inner.strays.remove(0);
            }
            inner.strays.push((pid, exit));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn watch(&mut self, pid: u32) -> Exited {
        let (tell, exited) = oneshot::channel();
        self.known.insert(pid, tell);
        exited
    }
}

/// An open window for a child whose pid is not known yet; closes when dropped.
#[derive(Debug)]
pub struct Adoption {
    reaper: Arc<Reaper>,
}

impl Adoption {
    /// Watches `pid`, which the runtime made since this window was opened. Also returns the
    /// process itself as a descriptor: none when it has exited already. A pid that is not reaped
    /// cannot be reused, so this is the right process; signals go to it by this descriptor only.
    pub fn adopt(&self, pid: u32) -> (Exited, Option<OwnedFd>) {
        let mut inner = self.reaper.lock();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let at = inner.strays.iter().rposition(|(p, _)| *p == pid);
        // A stray's number may have been given out again since: then it is a child of ours now.
        if let Some(at) = at.filter(|_| !raw.is_some_and(is_child)) {
            let (_, exit) = inner.strays.swap_remove(at);
            let (tell, exited) = oneshot::channel();
            // The receiver is right here.
            let _ = tell.send(exit);
            return (exited, None);
        }
        let open = |pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
        (inner.watch(pid), raw.and_then(open))
    }
}

/// Whether `pid` is a child that is not reaped yet.
fn is_child(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(pid), options).is_ok()
}

impl Drop for Adoption {
    fn drop(&mut self) {
        let mut inner = self.reaper.lock();
        inner.adoptions -= 1;
        if inner.adoptions == 0 {
            inner.strays = Vec::new();
        }
    }
}
