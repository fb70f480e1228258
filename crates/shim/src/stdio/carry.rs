//! Streams on their way to the next program.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_errdefs::Result;
use serde::{Deserialize, Serialize};

use super::logger::Logger;
use super::pump::{Flow, Pump, Sink};
use super::{Deferred, Held, Io};
use crate::reaper::Reaper;
use crate::upgrade::fds::{Incoming, Outgoing};

/// What the shim holds for a process's streams, as numbers of descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IoState {
    /// Input that is not opened yet.
    pub deferred: Option<DeferredState>,
    /// Keeps input open.
    pub stdin: Option<RawFd>,
    /// Keep output FIFOs open.
    pub outputs: Vec<RawFd>,
    /// The terminal.
    pub console: Option<RawFd>,
    /// Input that is copied.
    pub input: Option<PumpState>,
    /// Output that is copied.
    pub pumps: Vec<PumpState>,
    /// The pid of the logging program.
    pub logger: Option<u32>,
}

/// An input FIFO to be opened when its process starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeferredState {
    path: PathBuf,
    to: SinkState,
    closed: bool,
}

/// A copying task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PumpState {
    from: RawFd,
    to: SinkState,
    /// Read and not written.
    left: Vec<u8>,
}

/// Where it writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SinkState {
    /// A pipe, FIFO or terminal.
    Ready(RawFd),
    /// A file.
    File(RawFd),
}

impl Io {
    /// Stops copying.
    pub(crate) async fn hold(&self) {
        let flows = self.flows();
        for flow in flows {
            flow.hold().await;
        }
    }

    /// Copies again.
    pub(crate) fn release(&self) {
        for flow in self.flows() {
            flow.release();
        }
    }

    fn flows(&self) -> Vec<Arc<Flow>> {
        let held = self.lock();
        held.input_pump.iter().chain(&held.output_pumps).filter_map(Pump::flow).collect()
    }

    /// What there is; copying is held, or only a look is taken.
    ///
    /// # Errors
    /// A descriptor's.
    pub(crate) fn carry(&self, fds: Outgoing) -> Result<IoState> {
        let mut held = self.lock();
        let deferred = match &held.deferred {
            Some(deferred) => Some(DeferredState {
                path: deferred.path.clone(),
                to: deferred.to.carry(fds)?,
                closed: deferred.closed,
            }),
            None => None,
        };
        let input = match held.input_pump.as_ref().and_then(Pump::flow) {
            Some(flow) => flow.carry(fds)?,
            None => None,
        };
        let mut pumps = Vec::new();
        for flow in held.output_pumps.iter().filter_map(Pump::flow) {
            pumps.extend(flow.carry(fds)?);
        }
        let outputs = held.outputs.iter().map(|fd| fds.number(fd)).collect::<Result<_>>()?;
        Ok(IoState {
            deferred,
            stdin: held.stdin.as_ref().map(|fd| fds.number(fd)).transpose()?,
            outputs,
            console: held.console.as_ref().map(|fd| fds.number(fd.get_ref())).transpose()?,
            input,
            pumps,
            logger: held.logger.as_mut().and_then(Logger::running),
        })
    }

    /// Takes up what the program before this one has left, and goes on copying.
    ///
    /// # Errors
    /// A descriptor is not there.
    pub(crate) fn resume(state: IoState, fds: &mut Incoming, reaper: &Arc<Reaper>) -> Result<Self> {
        let deferred = match state.deferred {
            Some(state) => {
                let to = state.to.resume(fds)?;
                Some(Deferred { path: state.path, to, closed: state.closed })
            }
            None => None,
        };
        let mut pump = |state: PumpState| {
            let (from, to) = (fds.watched(state.from)?, state.to.resume(fds)?);
            Ok(Pump::start(from, to, state.left))
        };
        let input_pump = state.input.map(&mut pump).transpose()?;
        let output_pumps = state.pumps.into_iter().map(pump).collect::<Result<_>>()?;
        let held = Held {
            deferred,
            stdin: state.stdin.map(Incoming::owned).transpose()?,
            outputs: state.outputs.into_iter().map(Incoming::owned).collect::<Result<_>>()?,
            console: state.console.map(|number| fds.watched(number)).transpose()?,
            input_pump,
            output_pumps,
            logger: state.logger.map(|pid| Logger::resume(pid, reaper)),
        };
        Ok(Self { inner: std::sync::Mutex::new(held) })
    }
}

impl Flow {
    fn carry(&self, fds: Outgoing) -> Result<Option<PumpState>> {
        let Some(left) = self.left() else { return Ok(None) };
        let from = fds.number(self.from.get_ref())?;
        Ok(Some(PumpState { from, to: self.to.carry(fds)?, left }))
    }
}

impl Sink {
    fn carry(&self, fds: Outgoing) -> Result<SinkState> {
        let number = fds.number(self.as_fd())?;
        Ok(match self {
            Self::Ready(_) => SinkState::Ready(number),
            Self::File(_) => SinkState::File(number),
        })
    }
}

impl SinkState {
    fn resume(self, fds: &mut Incoming) -> Result<Sink> {
        Ok(match self {
            Self::Ready(number) => Sink::Ready(fds.watched(number)?),
            Self::File(number) => Sink::file(Incoming::owned(number)?),
        })
    }
}
