//! Descriptors on their way from one program to the next: known by number, taken once.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use gantry_errdefs::{Error, Result};
use rustix::io::FdFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fd;

/// What is done with each descriptor that is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// Nothing: only the numbers are wanted.
    Named,
    /// It stays open when the next program is executed.
    Kept,
    /// It is closed then, as ever; undoes the above.
    Closed,
}

impl Outgoing {
    /// The number of a descriptor.
    ///
    /// # Errors
    /// Its flags cannot be changed.
    pub(crate) fn number(self, fd: impl AsFd) -> Result<RawFd> {
        let fd = fd.as_fd();
        let flags = match self {
            Self::Named => return Ok(fd.as_raw_fd()),
            Self::Kept => FdFlags::empty(),
            Self::Closed => FdFlags::CLOEXEC,
        };
        rustix::io::fcntl_setfd(fd, flags).map_err(|err| Error::io("F_SETFD", err.into()))?;
        Ok(fd.as_raw_fd())
    }
}

/// The descriptors that the program before this one has left open.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Those that more than one stream uses: a terminal is read and written.
    watched: HashMap<RawFd, Arc<AsyncFd<OwnedFd>>>,
}

impl Incoming {
    /// Takes a descriptor.
    ///
    /// # Errors
    /// It is not open.
    pub(crate) fn owned(number: RawFd) -> Result<OwnedFd> {
        gantry_sys::exec::inherited(number)
            .map_err(|err| Error::io(format!("descriptor {number} of the last program"), err))
    }

    /// Takes a descriptor that can wait, registered with the reactor; the same one each time.
    ///
    /// # Errors
    /// It is not open, or cannot be registered.
    pub(crate) fn watched(&mut self, number: RawFd) -> Result<Arc<AsyncFd<OwnedFd>>> {
        if let Some(known) = self.watched.get(&number) {
            return Ok(known.clone());
        }
        let owned = Self::owned(number)?;
        let watched = fd::watch(owned, Interest::READABLE | Interest::WRITABLE)
            .map_err(|err| Error::io(format!("descriptor {number} of the last program"), err))?;
        let watched = Arc::new(watched);
        self.watched.insert(number, watched.clone());
        Ok(watched)
    }
}
