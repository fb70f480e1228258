//! The gRPC server: one set of services behind the socket and the in-process channel.

use std::time::Duration;

use gantry_errdefs::{Error, Result};
use gantry_services::Calls;
use tokio::io::DuplexStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::catch_panic::CatchPanicLayer;
use crate::connection::Cuttable;
use crate::count_calls::CountCallsLayer;

/// How long calls in flight may take to end once the daemon stops. Waits and subscriptions never
/// end by themselves, so this is what a stop costs when clients are connected.
pub(crate) const GRACE_MAX: Duration = Duration::from_secs(1);

/// How long cut connections may take to go.
const CUT_MAX: Duration = Duration::from_secs(2);

/// HTTP/2 streams of one connection: a client with a Wait per container needs as many.
const STREAMS_PER_CONNECTION_MAX: u32 = 8192;

/// Bytes a client may send ahead on one stream, and on one connection. Blobs are written over
/// these: larger is faster, and costs memory only while it is in use.
const STREAM_WINDOW_LEN: u32 = 1 << 20;
const CONNECTION_WINDOW_LEN: u32 = 4 << 20;

/// Largest frame taken, in bytes: each is a system call of the client that sends it. The buffer of a
/// connection grows to this only for clients that send such.
const FRAME_LEN_MAX: u32 = 512 << 10;

/// How often an idle connection is probed, and how long an answer may take.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(120);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves `routes` on a unix socket until `stop` turns true; counts into `calls`.
pub(crate) fn serve_socket(
    routes: Routes,
    calls: Option<Calls>,
    listener: UnixListener,
    stop: watch::Receiver<bool>,
) -> JoinHandle<Result<()>> {
    serve(routes, calls, UnixListenerStream::new(listener), stop)
}

/// Serves `routes` on connections that come through `accept` until `stop` turns true; counts into
/// `calls`.
pub(crate) fn serve_in_process(
    routes: Routes,
    calls: Option<Calls>,
    accept: mpsc::Receiver<DuplexStream>,
    stop: watch::Receiver<bool>,
) -> JoinHandle<Result<()>> {
    serve(routes, calls, ReceiverStream::new(accept).map(Ok::<_, std::io::Error>), stop)
}

fn serve<I>(
    routes: Routes,
    calls: Option<Calls>,
    incoming: impl Stream<Item = std::io::Result<I>> + Send + 'static,
    stop: watch::Receiver<bool>,
) -> JoinHandle<Result<()>>
where
    I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_LEN)
        .initial_connection_window_size(CONNECTION_WINDOW_LEN)
        .max_frame_size(FRAME_LEN_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(CountCallsLayer(calls))
        .layer(CatchPanicLayer)
        .add_routes(routes);
    let cut = stop.clone();
    let incoming = incoming.map(move |accepted| {
        accepted.map(|io| Cuttable::new(io, stopped_and(cut.clone(), GRACE_MAX)))
    });
    tokio::spawn(async move {
        let serving = server.serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
        tokio::select! {
            end = serving => end.map_err(|e| Error::internal(format!("grpc server: {e}"))),
            () = stopped_and(stop, GRACE_MAX + CUT_MAX) => {
                Err(Error::internal("grpc server: connections do not end"))
            }
        }
    })
}

/// Resolves `later` than `stop` turned true.
async fn stopped_and(stop: watch::Receiver<bool>, later: Duration) {
    stopped(stop).await;
    tokio::time::sleep(later).await;
}

/// Resolves when `stop` turns true or its sender is gone.
pub(crate) async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the daemon value is gone: the same end.
    let _ = stop.wait_for(|s| *s).await;
}
