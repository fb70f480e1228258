//! Connections that end when the daemon says so.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use gantry_services::Flushes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// A connection that breaks once `cut` resolves. Waits and subscriptions never end by themselves,
/// and the server leaves connections with open streams alone; this is what ends them.
pub(crate) struct Cuttable<I> {
    inner: I,
    /// None once it has resolved.
    cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    flushes: Flushes,
    /// Whether something was written since the last flush.
    dirty: bool,
}

impl<I> Cuttable<I> {
    /// A connection over `inner`.
    pub(crate) fn new(inner: I, cut: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { inner, cut: Some(Box::pin(cut)), flushes: Flushes::default(), dirty: false }
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.cut {
            None => true,
            Some(cut) => {
                let done = cut.as_mut().poll(cx).is_ready();
                if done {
                    self.cut = None;
                }
                done
            }
        }
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the daemon is stopping")
}

impl<I: AsyncRead + Unpin> AsyncRead for Cuttable<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(broken()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Cuttable<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.dirty = true;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) && std::mem::take(&mut self.dirty) {
            self.flushes.written();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.dirty = true;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<I: Connected> Connected for Cuttable<I> {
    type ConnectInfo = Flushes;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.flushes.clone()
    }
}
