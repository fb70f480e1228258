//! The engine's ends of a process' input and output.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use gantry_client::Streams;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;

/// The engine's ends of a process' FIFOs.
#[derive(Debug)]
pub struct DirectIo {
    /// Takes input; dropping it ends the process' input.
    pub stdin: Option<StdinPipe>,
    /// Gives output.
    pub stdout: Option<pipe::Receiver>,
    /// Gives errors; None with a terminal.
    pub stderr: Option<pipe::Receiver>,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// The end of a process' input. The shim keeps its own end open so that engines may come and go;
/// dropping this one also tells the shim to close its, so that the process reads the end.
#[derive(Debug)]
pub struct StdinPipe {
    pipe: pipe::Sender,
    process: gantry_client::Process,
    closed: Closed,
    runtime: Handle,
}

/// Whether a process' input was ended, which may be before the process is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closed(Arc<AtomicBool>);

impl Closed {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl DirectIo {
    pub(crate) fn new(
        streams: Streams,
        terminal: bool,
        process: &gantry_client::Process,
    ) -> (Self, Closed) {
        let closed = Closed::default();
        let stdin = streams.stdin.map(|pipe| StdinPipe {
            pipe,
            process: process.clone(),
            closed: closed.clone(),
            runtime: Handle::current(),
        });
        (Self { stdin, stdout: streams.stdout, stderr: streams.stderr, terminal }, closed)
    }
}

impl AsyncWrite for StdinPipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl Drop for StdinPipe {
    fn drop(&mut self) {
        self.closed.0.store(true, Ordering::SeqCst);
        let process = self.process.clone();
        self.runtime.spawn(async move {
            if let Err(e) = process.close_stdin().await {
                // Before the process is there, and after its end.
                tracing::debug!(id = process.container_id(), error = %e, "input not closed");
            }
        });
    }
}
