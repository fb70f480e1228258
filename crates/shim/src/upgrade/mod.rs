//! Live upgrade: another program in place of this one, with the containers none the wiser.
//!
//! A request names the program. It is asked first, as a process of its own, whether it can go on
//! from the state as it is ([`check`]). Then the shim comes to rest ([`Rest`]): nothing more is
//! read from connections, calls that run end (but for waits, which are made again), the event that
//! is being sent is sent, streams stop between two bytes, exits that are known are dealt with and
//! later ones stay with the kernel. At rest the state is written ([`state`]) and the program
//! executed. Pid, children, working directory, sockets and streams stay; the program reads the
//! state, takes up everything and answers the request.
//!
//! Whatever fails before the exec leaves the shim as it was.

pub(crate) mod fds;
pub(crate) mod state;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gantry_api::gantry::shim::v1 as api;
use gantry_api::gantry::shim::v1::shim_ttrpc;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_ttrpc::{Context, Handover};
use tokio::sync::Mutex;

use crate::args::Args;
use crate::fd;
use crate::log::warning;
use crate::sandbox::SandboxService;
use crate::task::Shim;
use fds::Outgoing;
use state::{ConnectionState, STATE_VERSION, State};

/// Calls, events and streams get this long to come to rest; a shim that is busier is left as it
/// is and may be asked again.
const REST_DEADLINE: Duration = Duration::from_secs(10);
/// The check starts a process and reads a few kilobytes.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);
/// The answer of a program that can go on, without the version it has.
const CHECK_ANSWER: &str = "takes over as ";
/// Whoever runs after an exit that was told has run by then: tasks that are ready run in turn, one
/// round for each wake-up, and one more makes sure.
const SETTLE_ROUNDS: usize = 3;

/// Whether a call of a connection may be made again by the next program.
pub(crate) fn repeats(_: &str, method: &str) -> bool {
    matches!(method, "Wait" | "WaitSandbox" | "Upgrade")
}

/// Answers [`shim_ttrpc::Shim`].
#[derive(Debug)]
pub(crate) struct UpgradeService {
    parts: Parts,
    /// The request that led to this program, and the version of the one before it.
    came_from: Option<(String, String)>,
    one_at_a_time: Mutex<()>,
}

/// Everything that has a state.
pub(crate) struct Parts {
    /// How the program was called.
    pub args: Args,
    /// The task service.
    pub shim: Arc<Shim>,
    /// The sandbox service.
    pub pod: Arc<SandboxService>,
    /// The connections.
    pub handover: Handover,
    /// The listening socket.
    pub listener: OwnedFd,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("args", &self.args).finish_non_exhaustive()
    }
}

impl UpgradeService {
    /// Serves for `parts`; `came_from` is the token and version of the program before this one.
    pub(crate) fn new(parts: Parts, came_from: Option<(String, String)>) -> Arc<Self> {
        Arc::new(Self { parts, came_from, one_at_a_time: Mutex::default() })
    }

    async fn replace(&self, program: &Path, token: &str) -> Result<()> {
        let parts = &self.parts;
        let Ok(_one) = self.one_at_a_time.try_lock() else {
            return Err(Error::unavailable("upgrade: another one is under way"));
        };
        if !program.is_absolute() || token.is_empty() {
            return Err(Error::invalid_argument("upgrade: an absolute path and a token, please"));
        }
        parts.check(program, token).await?;
        let rest = Rest::of(parts).await?;
        let connections = parts.handover.carried().context(|| "upgrade: connections")?;
        let replaced = parts.replace(program, token, &connections);
        // Only a failure comes here.
        let undone = parts.state(token, Outgoing::Closed, &connections);
        drop((connections, rest));
        undone.and(replaced)
    }
}

impl Parts {
    /// Asks the program whether it can go on from here.
    async fn check(&self, program: &Path, token: &str) -> Result<()> {
        let refused = |why: String| {
            Error::failed_precondition(format!("upgrade to {}: {why}", program.display()))
        };
        let state = self.state(token, Outgoing::Named, &[])?.to_file()?;
        let printed = fd::memory("check")?;
        let mut command = Command::new(program);
        command.args(["-check", "takeover"]).stdin(Stdio::from(state));
        command.stdout(Stdio::from(fd::duplicate(&printed)?)).stderr(Stdio::null());
        let spawned = self.shim.reaper.spawn(&mut command);
        let (pid, exited) = spawned.map_err(|err| refused(format!("cannot be run: {err}")))?;
        drop(command);
        let Ok(Ok(exit)) = tokio::time::timeout(CHECK_DEADLINE, exited).await else {
            fd::kill(pid);
            return Err(refused("it does not answer".to_owned()));
        };
        let answer = fd::read_from_start(&printed, 256)?;
        if exit.status == 0 && answer.starts_with(CHECK_ANSWER.as_bytes()) {
            return Ok(());
        }
        Err(refused(format!("it cannot take over (exit status {})", exit.status)))
    }

    /// The state; `fds` says what becomes of the descriptors that are named in it.
    fn state(
        &self,
        token: &str,
        fds: Outgoing,
        sockets: &[gantry_ttrpc::Carried],
    ) -> Result<State> {
        let connection = |carried: &gantry_ttrpc::Carried| {
            let socket = fds.number(&carried.socket)?;
            Ok(ConnectionState { socket, input: carried.input.clone() })
        };
        Ok(State {
            version: STATE_VERSION,
            binary_version: crate::VERSION.to_owned(),
            token: token.to_owned(),
            listener: fds.number(&self.listener)?,
            connections: sockets.iter().map(connection).collect::<Result<_>>()?,
            events: self.shim.events.carry(),
            pod: self.pod.carry(),
            containers: self.shim.carry(fds)?,
        })
    }

    /// Executes the program. Nothing else runs from here to there.
    fn replace(
        &self,
        program: &Path,
        token: &str,
        connections: &[gantry_ttrpc::Carried],
    ) -> Result<()> {
        let file = self.state(token, Outgoing::Kept, connections)?.to_file()?;
        let number = Outgoing::Kept.number(&file)?;
        let name = std::env::args_os().next().unwrap_or_else(|| program.into());
        let mut argv: Vec<OsString> = vec![name];
        argv.extend(self.args.flags().into_iter().map(OsString::from));
        argv.extend(["-state-fd".into(), number.to_string().into(), "takeover".into()]);
        // As the first program was started, so that it may enter containers; see `engine::join`.
        let protected = gantry_sys::program::protect(program).ok();
        let path = protected.as_ref().map(gantry_sys::program::path_of);
        let err = gantry_sys::exec::replace(path.as_deref().unwrap_or(program), &argv);
        Err(Error::io(format!("upgrade to {}", program.display()), err))
    }
}

/// A shim at rest. It goes on when this is dropped.
struct Rest<'a>(&'a Parts);

impl<'a> Rest<'a> {
    /// Brings everything to rest.
    ///
    /// # Errors
    /// Unavailable when that takes too long.
    async fn of(parts: &'a Parts) -> Result<Self> {
        let rest = Self(parts);
        let quiet = rest.come();
        if tokio::time::timeout(REST_DEADLINE, quiet).await.is_err() {
            return Err(Error::unavailable("upgrade: the shim is busy"));
        }
        Ok(rest)
    }

    async fn come(&self) {
        let Self(parts) = self;
        parts.handover.hold();
        while !parts.handover.is_quiet() {
            parts.handover.changed().await;
        }
        parts.shim.events.hold().await;
        parts.shim.hold_streams().await;
        loop {
            parts.shim.reaper.hold();
            for _ in 0..SETTLE_ROUNDS {
                tokio::task::yield_now().await;
            }
            if parts.shim.endings.is_idle() {
                return;
            }
            parts.shim.reaper.release();
            parts.shim.endings.idle().await;
        }
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        let Self(parts) = self;
        parts.shim.reaper.release();
        parts.shim.release_streams();
        parts.shim.events.release();
        parts.handover.release();
    }
}

/// The other side of the check: whether this program can go on from the state on standard input.
/// Returns what to print.
///
/// # Errors
/// It cannot.
pub(crate) fn check() -> Result<Vec<u8>> {
    let state = State::from_file(&fd::duplicate(rustix::stdio::stdin())?)?;
    Ok(format!("{CHECK_ANSWER}{}, from {}\n", crate::VERSION, state.binary_version).into_bytes())
}

/// Takes the state that the program before this one has left.
///
/// # Errors
/// It cannot be read, which the check before should have told.
pub(crate) fn receive(args: &Args) -> Result<State> {
    let number = args.state_fd.parse().map_err(|_| {
        Error::invalid_argument(format!("takeover: -state-fd {:?}: not a number", args.state_fd))
    })?;
    State::from_file(&fds::Incoming::owned(number)?)
}

impl shim_ttrpc::Shim for UpgradeService {
    async fn info(&self, _: Context, _: api::InfoRequest) -> Result<api::InfoResponse> {
        Ok(api::InfoResponse {
            pid: std::process::id(),
            version: crate::VERSION.to_owned(),
            state_version: STATE_VERSION,
            containers: self.parts.shim.ids(),
        })
    }

    async fn upgrade(&self, _: Context, r: api::UpgradeRequest) -> Result<api::UpgradeResponse> {
        if let Some((token, version)) = &self.came_from
            && *token == r.token
        {
            return Ok(api::UpgradeResponse {
                pid: std::process::id(),
                version: crate::VERSION.to_owned(),
                previous_version: version.clone(),
            });
        }
        let program = PathBuf::from(r.program);
        match self.replace(&program, &r.token).await {
            Err(err) => {
                warning!("{err}");
                Err(err)
            }
            Ok(()) => Err(Error::internal("upgrade: the program was not executed")),
        }
    }
}
