//! The shim's log: lines of `key=value` text into the bundle's `log` FIFO, which the daemon reads.
//!
//! Never blocks and never fails: a line that does not fit (nobody reads) is dropped. There is no
//! subscriber machinery here on purpose, it would be a third of the shim.

use std::fmt::{Arguments, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

static SINK: OnceLock<OwnedFd> = OnceLock::new();
static DEBUG: AtomicBool = AtomicBool::new(false);

/// A line is one write, and writes up to this size to a FIFO are atomic (PIPE_BUF).
const LINE_BYTES_MAX: usize = 4096;

/// Opens `bundle/log` when there is one; without it lines go nowhere. `O_RDWR` so that the open
/// does not wait for a reader and a reader that goes away is no error.
pub(crate) fn open(bundle: &Path, debug: bool) {
    DEBUG.store(debug, Ordering::Relaxed);
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::open(bundle.join("log"), flags, Mode::empty()) {
        // A second call keeps the first sink: there is one log per process.
        let _ = SINK.set(fd);
    }
}

/// Something the operator should know.
pub(crate) fn warn(text: Arguments<'_>) {
    line("warning", text);
}

/// Something only a developer wants, when `-debug` was given.
pub(crate) fn debug(text: Arguments<'_>) {
    if DEBUG.load(Ordering::Relaxed) {
        line("debug", text);
    }
}

fn line(level: &str, text: Arguments<'_>) {
    let Some(fd) = SINK.get() else { return };
    let mut out = String::with_capacity(160);
    let time = crate::clock::rfc3339(std::time::SystemTime::now());
    // Writing to a String does not fail.
    let _ = write!(out, "time=\"{time}\" level={level} msg={:?}", text.to_string());
    let mut end = out.len().min(LINE_BYTES_MAX - 1);
    while !out.is_char_boundary(end) {
        end -= 1;
    }
    out.truncate(end);
    out.push('\n');
    // Dropping a line is the contract of this log.
    let _ = rustix::io::write(fd, out.as_bytes());
}

macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::warn(format_args!($($arg)*)) };
}
macro_rules! debugging {
    ($($arg:tt)*) => { $crate::log::debug(format_args!($($arg)*)) };
}
pub(crate) use {debugging, warning};
