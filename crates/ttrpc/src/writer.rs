//! The writing half of a connection.

use std::sync::Arc;

use gantry_errdefs::{Error, Result};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::frame::Outgoing;
use crate::handover::Line;

/// Frames that wait for the socket. Callers beyond it wait in line, each under its own deadline.
const FRAMES_QUEUED_MAX: usize = 32;

/// Sends frames, whole and in order. A task owns the socket, so a caller that is dropped while
/// it waits cannot leave half a frame behind.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Outgoing>,
}

/// Room for one frame.
pub(crate) struct Slot<'a>(mpsc::Permit<'a, Outgoing>);

impl Slot<'_> {
    pub(crate) fn send(self, frame: Outgoing) {
        self.0.send(frame);
    }
}

impl Writer {
    /// Starts the task; it ends when the last writer is gone (all frames written, the socket
    /// shut down for writing) or when the socket fails.
    pub(crate) fn spawn<W>(socket: W) -> (Self, JoinHandle<()>)
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        Self::spawn_on(socket, None)
    }

    /// As [`Writer::spawn`], and tells `line` what was written.
    pub(crate) fn spawn_on<W>(socket: W, line: Option<Arc<Line>>) -> (Self, JoinHandle<()>)
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (queue, frames) = mpsc::channel(FRAMES_QUEUED_MAX);
        (Self { queue }, tokio::spawn(write_all(socket, frames, line)))
    }

    /// Waits for room.
    ///
    /// # Errors
    /// Unavailable when the connection is gone.
    pub(crate) async fn reserve(&self) -> Result<Slot<'_>> {
        self.queue.reserve().await.map(Slot).map_err(|_| gone())
    }

    /// Sends `frame` when there is room.
    ///
    /// # Errors
    /// Unavailable when the connection is gone.
    pub(crate) async fn send(&self, frame: Outgoing) -> Result<()> {
        self.queue.send(frame).await.map_err(|_| gone())
    }

    /// Sends `frame` if there is room now; for a place that cannot wait.
    pub(crate) fn send_now(&self, frame: Outgoing) {
        if self.queue.try_send(frame).is_err() {
            tracing::debug!("ttrpc: no room for a last answer");
        }
    }

    /// Whether the socket cannot be written any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Resolves when the socket cannot be written any more.
    pub(crate) async fn closed(&self) {
        self.queue.closed().await;
    }
}

fn gone() -> Error {
    Error::unavailable("ttrpc connection closed")
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut frames: mpsc::Receiver<Outgoing>,
    line: Option<Arc<Line>>,
) {
    while let Some(frame) = frames.recv().await {
        if let Err(err) = socket.write_all(frame.bytes()).await {
            tracing::debug!(%err, "ttrpc: write");
            return;
        }
        if let Some(line) = &line {
            line.written(&frame);
        }
    }
    // The peer may be gone already; there is nobody to tell.
    let _ = socket.shutdown().await;
}
