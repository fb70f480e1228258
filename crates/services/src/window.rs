//! Bytes over a named stream, with the flow control that containerd's clients speak.
//!
//! Who receives grants a window by `WindowUpdate`; who sends puts at most that many bytes into
//! `Data` messages before the next grant.

use bytes::{Bytes, BytesMut};
use gantry_api::containerd::types::transfer::{Data, WindowUpdate};
use gantry_api::{BytesAny, Payload as _};
use gantry_errdefs::{Error, Result};

use crate::streaming::Stream;

/// Bytes in flight towards a receiver. Clients use 64 KiB, which makes an import wait for a grant
/// after every second message; they send as much as they are granted.
pub const WINDOW_LEN: usize = 1 << 20;

/// Bytes in one message, as far as the receiver's window goes. Each message costs a hand-over between
/// tasks on both sides, which with the 32 KiB of containerd's clients is most of the time.
pub const DATA_LEN_MAX: usize = 256 << 10;

/// Bytes of small pieces that are kept for a message of their own.
const PENDING_LEN_MAX: usize = 32 << 10;

/// Largest message taken: a client that sends more than it was granted is broken, but one whole
/// window in a message is within the rules.
const TAKEN_LEN_MAX: usize = WINDOW_LEN;

/// Receives bytes from a client.
#[derive(Debug)]
pub struct DataReader {
    stream: Stream,
    window: usize,
}

impl DataReader {
    /// Receives over `stream`; nothing is granted before the first read.
    pub fn new(stream: Stream) -> Self {
        Self { stream, window: 0 }
    }

    /// The next bytes; None once the client has sent all.
    ///
    /// # Errors
    /// InvalidArgument for a message of another type or beyond the window; what ended the stream.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.window <= WINDOW_LEN / 2 {
            let grant = WINDOW_LEN - self.window;
            let update = WindowUpdate { update: i32::try_from(grant).unwrap_or(i32::MAX) };
            // A client that has closed its side needs no grant; what it sent is still to be read.
            if self.stream.send(BytesAny::pack(&update)).await.is_ok() {
                self.window = WINDOW_LEN;
            }
        }
        let Some(message) = self.stream.recv().await.transpose()? else { return Ok(None) };
        let data: Data = message.unpack()?.ok_or_else(|| {
            Error::invalid_argument(format!("stream: expect Data, got {:?}", message.type_url))
        })?;
        if data.data.len() > TAKEN_LEN_MAX {
            return Err(Error::invalid_argument(format!(
                "stream: {} bytes in one message, {TAKEN_LEN_MAX} is the limit",
                data.data.len()
            )));
        }
        self.window = self.window.saturating_sub(data.data.len());
        Ok(Some(data.data))
    }
}

/// Sends bytes to a client. Flush it and drop it to tell that all was sent.
#[derive(Debug)]
pub struct DataWriter {
    stream: Stream,
    window: usize,
    /// Small pieces, until they are worth a message.
    pending: BytesMut,
}

impl DataWriter {
    /// Sends over `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, window: 0, pending: BytesMut::new() }
    }

    /// Sends `bytes` without a copy; small ones wait for what comes next, or for
    /// [`DataWriter::flush`].
    ///
    /// # Errors
    /// Unavailable when the client has gone away; InvalidArgument when it breaks the protocol.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if self.pending.len() + bytes.len() <= PENDING_LEN_MAX {
            self.pending.extend_from_slice(&bytes);
            return Ok(());
        }
        self.flush().await?;
        self.send(bytes).await
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// As [`DataWriter::write`].
    pub async fn flush(&mut self) -> Result<()> {
        let pending = self.pending.split().freeze();
        self.send(pending).await
    }

    async fn send(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            if self.window == 0 {
                self.grant().await?;
            }
            let len = bytes.len().min(self.window).min(DATA_LEN_MAX);
            self.window -= len;
            self.stream.send(BytesAny::data(bytes.split_to(len))).await?;
        }
        Ok(())
    }

    /// Waits until the client takes more.
    async fn grant(&mut self) -> Result<()> {
        while self.window == 0 {
            let message = self
                .stream
                .recv()
                .await
                .ok_or_else(|| Error::unavailable("stream: the client stopped reading"))??;
            let update: WindowUpdate = message.unpack()?.ok_or_else(|| {
                Error::invalid_argument(format!(
                    "stream: expect WindowUpdate, got {:?}",
                    message.type_url
                ))
            })?;
            let granted = usize::try_from(update.update)
                .map_err(|_| Error::invalid_argument("stream: negative window update"))?;
            self.window = self.window.saturating_add(granted);
        }
        Ok(())
    }
}

impl gantry_layout::ArchiveOut for DataWriter {
    async fn put(&mut self, bytes: Bytes) -> Result<()> {
        self.write(bytes).await
    }

    async fn flush(&mut self) -> Result<()> {
        Self::flush(self).await
    }
}
