//! The log of a shim: lines through a fifo into ours.

use std::path::Path;

use gantry_errdefs::{Error, Result};
use rustix::fs::{FileType, Mode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

/// The longest piece of a line we pass on; what is longer comes in several.
const LINE_BYTES_MAX: u64 = 8 << 10;

/// Reads the log of one shim until it is dropped.
#[derive(Debug)]
pub(crate) struct LogReader(AbortHandle);

impl Drop for LogReader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LogReader {
    /// Makes the fifo at `path` if there is none, and reads it. It is open for writing as well,
    /// so that a shim never finds it without a reader and we never see its end.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub(crate) fn open(path: &Path, id: &str) -> Result<Self> {
        let io = |e: std::io::Error| Error::io(path.display(), e);
        let mode = Mode::RUSR | Mode::WUSR | Mode::XUSR;
        match rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(err) => return Err(io(err.into())),
        }
        let fifo = pipe::OpenOptions::new().read_write(true).open_receiver(path).map_err(io)?;
        let id = id.to_owned();
        Ok(Self(tokio::spawn(async move { forward(fifo, &id).await }).abort_handle()))
    }
}

async fn forward(fifo: pipe::Receiver, id: &str) {
    // Lines are rare; a small buffer for each of many shims.
    let mut reader = BufReader::with_capacity(512, fifo);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                tracing::info!(target: "shim", id, "{}", text.trim_end());
                line.shrink_to(512);
            }
            Err(err) => {
                tracing::debug!(id, %err, "log of a shim");
                return;
            }
        }
    }
}
