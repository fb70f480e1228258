//! Files that are read and written where one stands.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use gantry_sys::durable::Writeback;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A file whose calls block the task that makes them. The program moves one archive and does nothing
/// else with that task, and a call that is handed to another thread instead costs a copy of all its
/// bytes and two switches.
#[derive(Debug)]
pub(crate) struct InPlace {
    file: File,
    /// Bytes written, to the end of the file.
    written: u64,
    writeback: Writeback,
}

impl InPlace {
    /// Reads or writes `file` from its start.
    pub(crate) fn new(file: File) -> Self {
        Self { file, written: 0, writeback: Writeback::default() }
    }

    /// Waits until what was written is on disk, most of which has begun to go there meanwhile.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl AsyncRead for InPlace {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.file.read(buf.initialize_unfilled())?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for InPlace {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let count = this.file.write(buf)?;
        this.written += count as u64;
        this.writeback.wrote(&this.file, this.written);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
