//! Small things with descriptors and pids.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gantry_errdefs::{Error, Result, ResultExt as _};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

fn of<T>(what: &str, result: rustix::io::Result<T>) -> Result<T> {
    result.map_err(std::io::Error::from).context(|| what.to_owned())
}

/// A file in memory.
pub(crate) fn memory(name: &str) -> Result<OwnedFd> {
    of(name, rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC))
}

/// Another descriptor of the same open file.
pub(crate) fn duplicate(fd: impl AsFd) -> Result<OwnedFd> {
    of("duplicate a descriptor", rustix::io::fcntl_dupfd_cloexec(fd, 3))
}

/// `/dev/null`, for reading and writing.
pub(crate) fn null() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    of("/dev/null", rustix::fs::open("/dev/null", flags, Mode::empty()))
}

/// A pipe: its reading and its writing end.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    of("pipe", rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC))
}

/// Registers a descriptor with the reactor.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // Deprecated for types whose descriptor may change; an OwnedFd's does not, and what stands in
    // for it is `unsafe`, which only the sys crate may use.
    #[allow(deprecated, reason = "see above")]
    AsyncFd::with_interest(fd, interest)
}

/// Makes reads and writes of the open file return instead of waiting.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> Result<()> {
    let fd = fd.as_fd();
    let flags = of("F_GETFL", rustix::fs::fcntl_getfl(fd))?;
    of("F_SETFL", rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK))
}

/// Up to `max` bytes from the start of a file.
pub(crate) fn read_from_start(fd: impl AsFd, max: u64) -> Result<Vec<u8>> {
    let fd = fd.as_fd();
    let size = of("fstat", rustix::fs::fstat(fd))?.st_size.unsigned_abs().min(max);
    let mut out = vec![0; usize::try_from(size).unwrap_or(0)];
    let mut at = 0;
    while at < out.len() {
        match of("read", rustix::io::pread(fd, &mut out[at..], at as u64))? {
            0 => break,
            n => at += n,
        }
    }
    out.truncate(at);
    Ok(out)
}

/// Writes everything, waiting where the descriptor waits.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let n = of("write", rustix::io::write(fd, bytes))?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// The signal of a number, where it has a name; real-time signals have none here and go through
/// the runtime.
pub(crate) fn named_signal(number: u32) -> Option<Signal> {
    i32::try_from(number).ok().and_then(Signal::from_named_raw)
}

/// Sends `signal` to a process. Returns whether it was still there.
pub(crate) fn signal(process: impl AsFd, signal: Signal) -> Result<bool> {
    match rustix::process::pidfd_send_signal(process, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(err) => Err(Error::io(format!("signal {}", signal.as_raw()), err.into())),
    }
}

/// As [`signal`], for a pid that is known not to be reused meanwhile: a child that is not reaped,
/// or a member of a cgroup read just now.
pub(crate) fn signal_pid(pid: u32, number: Signal) -> Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => signal(process, number),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(err) => Err(Error::io(format!("pid {}", pid.as_raw_nonzero()), err.into())),
    }
}

/// A child that is not reaped.
pub(crate) fn process(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Kills a child where failing changes nothing.
pub(crate) fn kill(pid: u32) {
    if let Err(err) = signal_pid(pid, Signal::KILL) {
        crate::log::warning!("{err}");
    }
}
