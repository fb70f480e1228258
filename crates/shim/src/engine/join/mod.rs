//! Exec without the runtime.
//!
//! Executing a Go program twice costs ten times what joining a container does. So where
//! everything about the container and the process is understood ([`plan::plan`] decides), the
//! process is made here ([`gantry_sys::enter`]). In every other case, and on anything that goes
//! wrong before its program runs, the answer is "not done" and the caller executes the runtime:
//! the words of a failure are always the runtime's own.

mod plan;
mod record;

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::enter::{self, Entry, Report, Started, Streams};
use gantry_sys::program;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use tokio::io::Interest;

use super::{Exec, RuncConfig, Spawned, direct};
use crate::fd;
use crate::log::{debugging, warning};
use crate::reaper::Reaper;
use plan::Plan;

pub(super) use record::Record;

/// Getting into a container is a dozen system calls; a frozen or thrashing machine may take this
/// long for them.
const ENTER_DEADLINE: Duration = Duration::from_secs(60);

/// The filter of a container's init, beside its spec; see [`keep_filter`].
const FILTER_FILE: &str = "seccomp.bpf";

/// Runs `call` in its container. None: not done, ask the runtime.
///
/// # Errors
/// The process hangs on its way into the container.
pub(super) async fn exec(
    config: &RuncConfig,
    reaper: &std::sync::Arc<Reaper>,
    call: &Exec<'_>,
) -> Result<Option<Spawned>> {
    let Some(init) = call.init.as_ref().filter(|_| direct::is_runc(config) && is_protected())
    else {
        return Ok(None);
    };
    let plan = match plan::plan(&config.root.join(call.id), call) {
        Ok(plan) => plan,
        Err(why) => {
            debugging!("exec {}: the runtime is asked: {why}", call.exec_id);
            return Ok(None);
        }
    };
    let window = reaper.adoption();
    let started = match plan.entry(init.as_fd(), call).start() {
        Ok(started) => started,
        Err(err) => {
            warning!("exec {}: the runtime is asked: {err}", call.exec_id);
            return Ok(None);
        }
    };
    let (exited, alive) = window.adopt(started.pid);
    let Started { pid, process, reports } = started;
    let followed = tokio::time::timeout(ENTER_DEADLINE, follow(reports)).await;
    let Ok(followed) = followed else {
        fd::signal(&process, rustix::process::Signal::KILL)?;
        let text = format!("exec {}: no answer in {ENTER_DEADLINE:?}, killed", call.exec_id);
        return Err(Error::deadline_exceeded(text));
    };
    match followed {
        Ok(terminal) => {
            if let (Some(terminal), Some(socket)) = (terminal, call.console) {
                send(&terminal, socket)?;
            }
            Ok(Some(Spawned { pid, exited, pidfd: alive.map(|_| process) }))
        }
        Err(why) => {
            debugging!("exec {}: the runtime is asked: {why}", call.exec_id);
            // It ends by itself, unless it is the last words that got lost.
            fd::signal(&process, rustix::process::Signal::KILL)?;
            Ok(None)
        }
    }
}

/// Waits until the program runs; returns the master of its terminal.
async fn follow(reports: OwnedFd) -> std::result::Result<Option<OwnedFd>, String> {
    let text = |err: &dyn std::fmt::Display| err.to_string();
    fd::set_nonblocking(&reports).map_err(|err| text(&err))?;
    let reports = fd::watch(reports, Interest::READABLE).map_err(|err| text(&err))?;
    let (mut terminal, mut ready) = (None, false);
    loop {
        let report = reports.async_io(Interest::READABLE, |fd| enter::receive(fd)).await;
        match report.map_err(|err| text(&err))? {
            Some(Report::Terminal(master)) => terminal = Some(master),
            Some(Report::Ready) => ready = true,
            Some(Report::Failed(failure)) => {
                let why = std::io::Error::from_raw_os_error(failure.errno);
                return Err(format!("{}: {why}", failure.step.text()));
            }
            None if ready => return Ok(terminal),
            None => return Err("it was killed on its way into the container".to_owned()),
        }
    }
}

/// Sends a terminal as a runtime does.
fn send(terminal: &OwnedFd, socket: &Path) -> Result<()> {
    let sent = || -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::STREAM;
        let to = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        rustix::net::connect(&to, &SocketAddrUnix::new(socket)?)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [terminal.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let data = [IoSlice::new(b"/dev/ptmx")];
        rustix::net::sendmsg(&to, &data, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    };
    sent().map_err(std::io::Error::from).context(|| "hand over a terminal")
}

/// Whether a container may see a process of this program; see [`program`].
fn is_protected() -> bool {
    static PROTECTED: OnceLock<bool> = OnceLock::new();
    *PROTECTED.get_or_init(|| {
        let is = program::is_protected();
        if !is {
            debugging!("this program is not on a read-only mount: execs go through the runtime");
        }
        is
    })
}

/// Keeps the seccomp filter of a new init, for execs: what the runtime made of the spec, exactly.
/// While the init waits for its start it has no other.
pub(super) fn keep_filter(config: &RuncConfig, id: &str, bundle: &Path, pid: u32) {
    if !direct::is_runc(config) || !is_protected() {
        return;
    }
    let has_filter =
        Record::read(&config.root.join(id)).is_some_and(|r| r.config.seccomp.is_some());
    if !has_filter {
        return;
    }
    let kept = gantry_sys::seccomp::first_filter(pid).and_then(|filter| match filter {
        Some(filter) => std::fs::write(bundle.join(FILTER_FILE), filter),
        None => Ok(()),
    });
    if let Err(err) = kept {
        warning!("container {id}: its seccomp filter: {err}");
    }
}

impl Plan {
    fn entry<'a>(&'a self, init: BorrowedFd<'a>, call: &'a Exec<'_>) -> Entry<'a> {
        let streams = match call.console {
            Some(_) => Streams::Terminal { size: self.size },
            None => {
                let stdio = &call.stdio;
                Streams::Three([stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()])
            }
        };
        Entry {
            init,
            namespaces: &self.namespaces,
            cgroups: &self.cgroups,
            oom_score_adj: self.oom_score_adj,
            limits: &self.limits,
            keyring: self.keyring.clone(),
            streams,
            no_new_privileges: self.no_new_privileges,
            seccomp: self.seccomp.as_deref(),
            uid: self.uid,
            gid: self.gid,
            groups: &self.groups,
            capabilities: self.capabilities,
            directory: self.directory.clone(),
            candidates: self.candidates.clone(),
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
            home: self.home,
        }
    }
}
