//! Standard input and output of processes.
//!
//! A client names each stream by a FIFO path, `file://`, `binary://` (and `binary-v2://`) or
//! nothing, and comes and goes as it likes. The shim keeps the other end usable meanwhile.
//!
//! **FIFOs are handed over.** Where nothing is in the way, the container's descriptor *is* the
//! client's FIFO: no copying, no task, no memory in the shim. What clients see is what a copying
//! shim shows them:
//! - the shim holds a reading end of an output FIFO, so a client that goes away breaks no pipe,
//!   output waits in the FIFO, and a process that fills it blocks until someone reads;
//! - a reader gets end-of-file when the last process that writes to it has closed it;
//! - the shim holds a writing end of the input FIFO until `CloseIO`, so a client that detaches
//!   does not end the input.
//!
//! Error output is never handed over: the runtime prints its own failures there before the process
//! exists, and clients are not to see those as the process's words.
//!
//! **The input of an init waits for its start.** A client's write to a FIFO begins when the shim
//! opens it. One that has little to say would be at its end before its `Create` has returned,
//! when some (`ctr run`) cannot tell that by `CloseIO` yet, and the container would wait for
//! input for ever. So this one FIFO is opened by `Start`, and copied.
//!
//! The runtime changes the owner of a process's streams to its user, which for a handed-over FIFO
//! is the client's file, and a security module may deny a labelled process a file of the host.
//! So pipes and a copying task are used instead when: the FIFO does not belong to root, the
//! options name an I/O uid or gid, the container has a user namespace, or the process has a
//! SELinux label or AppArmor profile. Terminals, `file://` and `binary://` always have a pipe (or
//! pty) of their own.
//!
//! Nothing here can hold up a container's life: whoever waits for output to drain does it with
//! [`DRAIN_INIT_DEADLINE`] or [`DRAIN_EXEC_DEADLINE`].

mod carry;
mod console;
mod fifo;
mod logger;
mod open;
mod pump;
mod target;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

pub(crate) use carry::IoState;
pub(crate) use console::ConsoleSocket;
pub(crate) use logger::Slots;
pub(crate) use open::{Context, open};

/// How long `Delete` of an init waits for its last output to reach a slow reader.
pub(crate) const DRAIN_INIT_DEADLINE: Duration = Duration::from_secs(10);
/// As above for execs, which may leave daemons behind that keep their output open.
pub(crate) const DRAIN_EXEC_DEADLINE: Duration = Duration::from_secs(2);

/// The streams of a process, as the client named them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Streams {
    /// Standard input; empty for none.
    pub stdin: String,
    /// Standard output; empty for none.
    pub stdout: String,
    /// Standard error; empty for none.
    pub stderr: String,
    /// One pseudo-terminal instead of three streams.
    pub terminal: bool,
}

/// What the shim holds for a process's streams while it lives.
#[derive(Debug, Default)]
pub(crate) struct Io {
    inner: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Input that is not opened yet.
    deferred: Option<Deferred>,
    /// Keeps input open for clients that come and go.
    stdin: Option<OwnedFd>,
    /// Keep output FIFOs open for readers that come and go.
    outputs: Vec<OwnedFd>,
    console: Option<Arc<AsyncFd<OwnedFd>>>,
    input_pump: Option<pump::Pump>,
    output_pumps: Vec<pump::Pump>,
    logger: Option<logger::Logger>,
}

/// An input FIFO to be opened when its process starts.
#[derive(Debug)]
struct Deferred {
    path: PathBuf,
    to: pump::Sink,
    /// The client has closed the input already.
    closed: bool,
}

impl Io {
    /// Opens input that has waited for the process to start. One whose client has taken it away
    /// is at its end.
    pub(crate) fn start_input(&self) {
        let mut held = self.lock();
        let Some(deferred) = held.deferred.take() else { return };
        let opened = fifo::input(&deferred.path, false).and_then(|input| {
            Ok((pump::register(input.read, tokio::io::Interest::READABLE)?, input.hold))
        });
        match opened {
            Ok((from, hold)) => {
                held.stdin = (!deferred.closed).then_some(hold);
                held.input_pump = Some(pump::Pump::start(from, deferred.to, Vec::new()));
            }
            Err(err) => crate::log::warning!("no input: {err}"),
        }
    }

    /// Closes the input for good: its reader gets end-of-file once clients have closed theirs.
    pub(crate) fn close_stdin(&self) {
        let mut held = self.lock();
        held.stdin = None;
        if let Some(deferred) = &mut held.deferred {
            deferred.closed = true;
        }
    }

    /// Sets the size of the terminal; without one there is nothing to do.
    ///
    /// # Errors
    /// The terminal's.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let Some(console) = self.lock().console.clone() else { return Ok(()) };
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size =
            Winsize { ws_row: cells(height), ws_col: cells(width), ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(console.get_ref(), size)
            .map_err(|err| Error::io("resize the terminal", err.into()))
    }

    /// Lets go of everything, after the last output was passed on or `deadline` is over.
    pub(crate) async fn close(&self, deadline: Duration) {
        let held = std::mem::take(&mut *self.lock());
        if let Some(pump) = held.input_pump {
            pump.abort();
        }
        drop((held.stdin, held.console));
        let by = tokio::time::Instant::now() + deadline;
        for mut pump in held.output_pumps {
            if tokio::time::timeout_at(by, pump.finished()).await.is_err() {
                crate::log::warning!("output that nobody read was dropped");
                pump.abort();
            }
        }
        drop(held.outputs);
        if let Some(logger) = held.logger {
            logger.finish(by).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
