//! One process of a container: its init, or an exec.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_api::containerd::v1::types::Status;
use gantry_errdefs::{Error, Result};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::engine::Spawned;
use crate::fd;
use crate::reaper::{Exit, Exited, Reaper};
use crate::stdio::{Io, Streams};
use crate::upgrade::fds::{Incoming, Outgoing};
use crate::upgrade::state::ProcessState;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Not started: an init that waits, or an exec that is only known.
    Created,
    /// Runs.
    Running,
    /// Being frozen.
    Pausing,
    /// Frozen.
    Paused,
    /// Has exited.
    Stopped,
    /// Deleted: nobody can find it any more.
    Deleted,
}

impl Stage {
    /// The word in error texts: "cannot delete a running process".
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }

    /// The number on the wire.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Created => Status::Created,
            Self::Running => Status::Running,
            Self::Pausing => Status::Pausing,
            Self::Paused => Status::Paused,
            Self::Stopped | Self::Deleted => Status::Stopped,
        }
    }
}

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty for the init.
    pub exec_id: String,
    /// As the client named them.
    pub streams: Streams,
    /// An exec's OCI `process` as the client sent it.
    pub spec: Vec<u8>,
    /// Held while the process is started or deleted, events included: an exit is published under
    /// it, and so never before the start it belongs to.
    pub life: tokio::sync::Mutex<()>,
    /// Told once, when an init has exited and before that is published.
    pub gone: Notify,
    inner: Mutex<Inner>,
    stopped: Notify,
}

#[derive(Debug)]
struct Inner {
    stage: Stage,
    pid: u32,
    pidfd: Option<OwnedFd>,
    exit: Option<Exit>,
    io: Arc<Io>,
    /// The client closed the input, perhaps before it was opened here.
    input_closed: bool,
}

impl Inner {
    fn is_alive(&self) -> bool {
        self.pid != 0 && self.exit.is_none()
    }
}

impl Process {
    /// A process that does not run yet.
    pub(crate) fn new(exec_id: String, streams: Streams, spec: Vec<u8>) -> Self {
        let inner = Inner {
            stage: Stage::Created,
            pid: 0,
            pidfd: None,
            exit: None,
            io: Arc::default(),
            input_closed: false,
        };
        Self {
            exec_id,
            streams,
            spec,
            life: tokio::sync::Mutex::default(),
            gone: Notify::new(),
            inner: Mutex::new(inner),
            stopped: Notify::new(),
        }
    }

    /// What the next program needs to go on with it.
    ///
    /// # Errors
    /// A descriptor's.
    pub(crate) fn carry(&self, fds: Outgoing) -> Result<ProcessState> {
        let inner = self.lock();
        Ok(ProcessState {
            exec_id: self.exec_id.clone(),
            streams: self.streams.clone(),
            spec: self.spec.clone(),
            stage: inner.stage,
            pid: inner.pid,
            exit: inner.exit,
            input_closed: inner.input_closed,
            io: inner.io.carry(fds)?,
        })
    }

    /// One of the program before this one. Streams that cannot be taken up are lost, with a
    /// warning: the process is not.
    pub(crate) fn resume(state: ProcessState, fds: &mut Incoming, reaper: &Arc<Reaper>) -> Self {
        let io = Io::resume(state.io, fds, reaper).unwrap_or_else(|err| {
            crate::log::warning!("pid {}: streams: {err}", state.pid);
            Io::default()
        });
        let process = Self::new(state.exec_id, state.streams, state.spec);
        let mut inner = process.lock();
        inner.stage = state.stage;
        inner.pid = state.pid;
        inner.exit = state.exit;
        inner.input_closed = state.input_closed;
        inner.io = Arc::new(io);
        // Nobody has reaped it, so the number is still its own.
        inner.pidfd = inner.is_alive().then(|| fd::process(state.pid)).flatten();
        drop(inner);
        process
    }

    /// Whether it has begun and not ended.
    pub(crate) fn is_alive(&self) -> bool {
        self.lock().is_alive()
    }

    /// Takes over what the engine made; returns what tells the exit.
    pub(crate) fn spawned(&self, spawned: Spawned, io: Io) -> Exited {
        let mut inner = self.lock();
        inner.pid = spawned.pid;
        inner.pidfd = spawned.pidfd;
        if inner.input_closed {
            io.close_stdin();
        }
        inner.io = Arc::new(io);
        spawned.exited
    }

    /// The pid; 0 before there is one.
    pub(crate) fn pid(&self) -> u32 {
        self.lock().pid
    }

    /// Where it is in its life.
    pub(crate) fn stage(&self) -> Stage {
        self.lock().stage
    }

    /// Moves from `from` to `to`. Does nothing, and says so, when it is elsewhere by now: an exit
    /// always wins.
    pub(crate) fn advance(&self, from: Stage, to: Stage) -> bool {
        let mut inner = self.lock();
        let is_there = inner.stage == from;
        if is_there {
            inner.stage = to;
        }
        is_there
    }

    /// Marks it as ended and wakes whoever waits.
    pub(crate) fn stop(&self, exit: Exit) {
        let mut inner = self.lock();
        inner.stage = Stage::Stopped;
        inner.exit = Some(exit);
        inner.pidfd = None;
        drop(inner);
        self.stopped.notify_waiters();
    }

    /// Marks it as deleted.
    pub(crate) fn deleted(&self) {
        self.lock().stage = Stage::Deleted;
        self.stopped.notify_waiters();
    }

    /// Its exit, if it has ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.lock().exit
    }

    /// Closes its input, now or as soon as there is one: a client with little to say is done
    /// before the process exists.
    pub(crate) fn close_stdin(&self) {
        let mut inner = self.lock();
        inner.input_closed = true;
        inner.io.close_stdin();
    }

    /// Its streams.
    pub(crate) fn io(&self) -> Arc<Io> {
        self.lock().io.clone()
    }

    /// Waits for its end, however late one asks. None: it was deleted without having run.
    pub(crate) async fn wait(&self) -> Option<Exit> {
        loop {
            let stopped = self.stopped.notified();
            {
                let inner = self.lock();
                if inner.exit.is_some() || inner.stage == Stage::Deleted {
                    return inner.exit;
                }
            }
            stopped.await;
        }
    }

    /// The process as a descriptor; none before it exists and after it has ended.
    pub(crate) fn pidfd(&self) -> Option<OwnedFd> {
        self.lock().pidfd.as_ref().and_then(|pidfd| fd::duplicate(pidfd).ok())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// NotFound when it has ended, FailedPrecondition when it has not begun.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let inner = self.lock();
        if inner.pid == 0 && inner.exit.is_none() {
            return Err(Error::failed_precondition("process not created"));
        }
        let sent = match &inner.pidfd {
            Some(pidfd) => fd::signal(pidfd, signal)?,
            None => false,
        };
        if sent { Ok(()) } else { Err(Error::not_found("process already finished")) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
