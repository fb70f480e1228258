//! Receiving a terminal's master from the runtime.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use gantry_errdefs::{Error, Result, ResultExt as _};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A socket the runtime connects to, to hand over the master of a terminal it made.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: OwnedFd,
    /// Where it is bound; removed when dropped.
    file: PathBuf,
    /// The same, in a form short enough for a socket address.
    path: PathBuf,
    /// Keeps `path` valid: it goes through this directory's descriptor.
    _directory: OwnedFd,
}

impl ConsoleSocket {
    /// Listens in `bundle`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn listen(bundle: &Path) -> Result<Self> {
        let name = format!(".console-{}.sock", NEXT.fetch_add(1, Ordering::Relaxed));
        let what = || format!("console socket {}", bundle.join(&name).display());
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let directory = rustix::fs::open(bundle, flags, rustix::fs::Mode::empty())
            .map_err(std::io::Error::from)
            .context(what)?;
        // A bundle's path may be longer than the 107 bytes of a socket address; this one is not,
        // and leads the runtime to the same place.
        let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
        let path = PathBuf::from(format!("/proc/{}/fd/{fd}/{name}", std::process::id()));
        let bound = || -> rustix::io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::STREAM;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
            rustix::net::listen(&socket, 1)?;
            Ok(socket)
        };
        let listener = bound().map_err(std::io::Error::from).context(what)?;
        Ok(Self { listener, file: bundle.join(name), path, _directory: directory })
    }

    /// The path to give to the runtime.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master. The runtime has sent it before it ended, so there is nothing to wait for.
    ///
    /// # Errors
    /// It did not send one.
    pub(crate) fn receive(&self) -> Result<OwnedFd> {
        let failed = |err: rustix::io::Errno| Error::io("receive the terminal", err.into());
        let socket = rustix::net::accept(&self.listener).map_err(failed)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        // The runtime sends the terminal's name as the data; nobody needs it.
        let mut name = [0_u8; 256];
        let data = &mut [IoSliceMut::new(&mut name)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&socket, data, &mut ancillary, flags).map_err(failed)?;
        ancillary
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .ok_or_else(|| Error::unknown("the runtime sent no terminal"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Gone with the bundle at the latest.
        let _ = std::fs::remove_file(&self.file);
    }
}
