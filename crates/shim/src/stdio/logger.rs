//! Logging programs (`binary://`): descriptor 3 is the container's output, 4 its error output,
//! and 5 a pipe the program closes or writes to when it is ready.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use tokio::io::Interest;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::pump;
use super::target::Program;
use crate::fd;
use crate::reaper::{Exited, Reaper};

/// A program that is not ready by then fails the start, as a container whose output is lost would.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// After its input has ended and its time is over, this long from SIGTERM to SIGKILL.
const TERM_DEADLINE: Duration = Duration::from_secs(2);

/// The first descriptor of the three.
const FIRST: i32 = 3;

/// Descriptors 3, 4 and 5, kept for logging programs: a child inherits descriptors by number, so
/// these three are swapped to the program's around its start. Nothing else runs meanwhile, this
/// process has one thread.
#[derive(Debug)]
pub(crate) struct Slots(Mutex<Option<[OwnedFd; 3]>>);

impl Slots {
    /// Takes the three; call it before anything else opens a descriptor. When one is in use by
    /// someone else there are none, and logging programs are refused.
    pub(crate) fn reserve() -> Self {
        let take = |wanted: i32| fd::null().ok().filter(|fd| fd.as_raw_fd() == wanted);
        let slots = (|| Some([take(FIRST)?, take(FIRST + 1)?, take(FIRST + 2)?]))();
        Self(Mutex::new(slots))
    }

    fn with<T>(&self, fds: [BorrowedFd<'_>; 3], act: impl FnOnce() -> T) -> Result<T> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slots) = slots.as_mut() else {
            return Err(Error::unknown("logging programs: descriptors 3 to 5 are in use"));
        };
        let null = fd::null()?;
        for (slot, fd) in slots.iter_mut().zip(fds) {
            // Duplicating onto a descriptor clears its close-on-exec flag: children get it.
            rustix::io::dup2(fd, slot).map_err(|err| Error::io("dup2", err.into()))?;
        }
        let done = act();
        for slot in slots.iter_mut() {
            let back = rustix::io::dup3(&null, slot, rustix::io::DupFlags::CLOEXEC);
            back.map_err(|err| Error::io("dup3", err.into()))?;
        }
        Ok(done)
    }
}

/// A running logging program.
#[derive(Debug)]
pub(super) struct Logger {
    pid: u32,
    /// None once it has ended.
    exited: Option<Exited>,
}

impl Logger {
    /// Starts `program` on the reading ends of the container's output, and waits until it is
    /// ready.
    ///
    /// # Errors
    /// It cannot be run, or is not ready in time.
    pub(super) async fn start(
        program: &Program,
        (namespace, id): (&str, &str),
        (stdout, stderr): (OwnedFd, OwnedFd),
        slots: &Slots,
        reaper: &Arc<Reaper>,
    ) -> Result<Self> {
        let failed = |why: &dyn std::fmt::Display| {
            Error::unknown(format!("logging program {}: {why}", program.path.display()))
        };
        let (ready, tell) = fd::pipe()?;
        let mut command = Command::new(&program.path);
        command.args(&program.args).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        command.env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
        let fds = [stdout.as_fd(), stderr.as_fd(), tell.as_fd()];
        let spawned = slots.with(fds, || reaper.spawn(&mut command))?;
        let (pid, exited) = spawned.map_err(|err| failed(&err))?;
        drop((stdout, stderr, tell));
        let logger = Self { pid, exited: Some(exited) };
        let ready = pump::register(ready, Interest::READABLE)?;
        let mut byte = [0_u8; 1];
        let read = ready.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut byte)?));
        match tokio::time::timeout(READY_DEADLINE, read).await {
            Ok(Ok(_)) => Ok(logger),
            Ok(Err(err)) => Err(failed(&err)),
            Err(_) => {
                fd::kill(logger.pid);
                Err(failed(&"not ready in time"))
            }
        }
    }

    /// Its pid, while it runs.
    pub(super) fn running(&mut self) -> Option<u32> {
        if !matches!(self.exited.as_mut()?.try_recv(), Err(TryRecvError::Empty)) {
            self.exited = None;
        }
        self.exited.is_some().then_some(self.pid)
    }

    /// One that the program before this one has started.
    pub(super) fn resume(pid: u32, reaper: &Arc<Reaper>) -> Self {
        Self { pid, exited: Some(reaper.resume(pid)) }
    }

    /// Waits for the program to read its input to the end; then asks it to stop, then makes it.
    pub(super) async fn finish(mut self, by: Instant) {
        let Some(exited) = &mut self.exited else { return };
        if tokio::time::timeout_at(by, &mut *exited).await.is_ok() {
            return;
        }
        // Fails only when it is gone by now.
        let _ = fd::signal_pid(self.pid, rustix::process::Signal::TERM);
        if tokio::time::timeout(TERM_DEADLINE, exited).await.is_err() {
            fd::kill(self.pid);
        }
    }
}
