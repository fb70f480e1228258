//! Copying between descriptors while data flows.
//!
//! At rest a pump is a registered descriptor and a small task; its buffer lives only from the
//! moment there is something to read until there is no more.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use gantry_errdefs::{Result, ResultExt as _};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::blocking;
use crate::fd;

/// One read; a quarter of what a pipe holds.
const CHUNK_BYTES: usize = 16 * 1024;

/// Something to read from, registered with the reactor.
pub(super) type Source = Arc<AsyncFd<OwnedFd>>;

/// Something to write to.
#[derive(Debug)]
pub(super) enum Sink {
    /// A pipe, FIFO or terminal.
    Ready(Arc<AsyncFd<OwnedFd>>),
    /// A regular file, which is always ready and may yet be slow: written to on a thread of its
    /// own while there is something to write.
    File(Arc<OwnedFd>),
}

/// Registers a descriptor that can wait.
pub(super) fn register(fd: OwnedFd, interest: Interest) -> Result<Source> {
    fd::set_nonblocking(&fd)?;
    let fd = fd::watch(fd, interest).context(|| "watch a stream")?;
    Ok(Arc::new(fd))
}

impl Sink {
    /// A sink for a descriptor that can wait.
    pub(super) fn ready(fd: OwnedFd) -> Result<Self> {
        register(fd, Interest::WRITABLE).map(Self::Ready)
    }

    /// A sink for a file that cannot.
    pub(super) fn file(fd: OwnedFd) -> Self {
        Self::File(Arc::new(fd))
    }

    async fn write_all(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Ready(fd) => write_ready(fd, bytes).await,
            Self::File(fd) => {
                let (fd, bytes) = (fd.clone(), bytes.to_vec());
                let write = move || fd::write_all(std::os::fd::AsFd::as_fd(&*fd), &bytes);
                blocking::run(write).await.map_err(std::io::Error::other)
            }
        }
    }
}

async fn write_ready(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
        let n = fd.async_io(Interest::WRITABLE, write).await?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Copies until the source ends or the sink breaks. A terminal ends with EIO.
pub(super) async fn copy(from: Source, to: Sink) {
    loop {
        let Ok(mut ready) = from.ready(Interest::READABLE).await else { return };
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match rustix::io::read(from.get_ref(), &mut buffer[..]) {
                Ok(0) => return,
                Ok(n) => {
                    if let Err(err) = to.write_all(&buffer[..n]).await {
                        if err.kind() != ErrorKind::BrokenPipe {
                            crate::log::warning!("output lost: {err}");
                        }
                        return;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
        ready.clear_ready_matching(tokio::io::Ready::READABLE);
    }
}
