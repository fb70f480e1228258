//! Opening FIFOs without waiting for the other side.

use std::os::fd::OwnedFd;
use std::path::Path;

use gantry_errdefs::{Result, ResultExt as _};
use rustix::fs::{FileType, Mode, OFlags, Stat};

/// The ends of an output FIFO: one that keeps it readable, and one to write to.
pub(super) struct Output {
    pub(super) hold: OwnedFd,
    pub(super) write: OwnedFd,
}

/// The ends of an input FIFO: one that keeps it writable, and one to read from.
pub(super) struct Input {
    pub(super) hold: OwnedFd,
    pub(super) read: OwnedFd,
}

/// Opens an output FIFO; `waits` tells whether writes wait for room.
pub(super) fn output(path: &Path, waits: bool) -> Result<Output> {
    // With a reader there, opening for writing succeeds at once.
    let hold = open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mode = if waits { OFlags::empty() } else { OFlags::NONBLOCK };
    Ok(Output { hold, write: open(path, OFlags::WRONLY | mode)? })
}

/// Opens an input FIFO; `waits` tells whether reads wait for input.
pub(super) fn input(path: &Path, waits: bool) -> Result<Input> {
    // Both ends at once never waits; it only stands in until the two real ones are open.
    let both = open(path, OFlags::RDWR | OFlags::NONBLOCK)?;
    let mode = if waits { OFlags::empty() } else { OFlags::NONBLOCK };
    let read = open(path, OFlags::RDONLY | mode)?;
    let hold = open(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
    drop(both);
    Ok(Input { hold, read })
}

/// Opens a file to append to.
pub(super) fn append(path: &Path, create: bool) -> Result<OwnedFd> {
    let create = if create { OFlags::CREATE } else { OFlags::empty() };
    open(path, OFlags::WRONLY | OFlags::APPEND | create)
}

/// Opens a file to read from.
pub(super) fn read(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::RDONLY)
}

/// What a path is, when it is a FIFO.
pub(super) fn stat(path: &Path) -> Result<Option<Stat>> {
    let stat = rustix::fs::stat(path)
        .map_err(std::io::Error::from)
        .context(|| format!("stdio {}", path.display()))?;
    Ok((FileType::from_raw_mode(stat.st_mode) == FileType::Fifo).then_some(stat))
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::from_raw_mode(0o644))
        .map_err(std::io::Error::from)
        .context(|| format!("stdio {}", path.display()))
}
