//! The HTTP listeners for people and their tools: metrics and debug.
//!
//! `GET /v1/metrics` answers Prometheus text, on TCP or on a unix socket, as `[metrics] address`
//! says. `GET /debug/vars` answers JSON on the debug address. Neither takes a body, and each request
//! has to arrive within [`HEAD_MAX`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use gantry_services::Metrics;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};

use crate::config::Config;
use crate::server::stopped;
use crate::socket::{self, SocketFile};

/// How long a request may take to arrive.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// Connections at one time; scrapers are a handful, and each may cost a round of asking shims.
const CONNECTIONS_MAX: usize = 32;

/// Pause after an accept that failed, as when descriptors have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Metrics,
    Debug,
}

/// The listeners that are configured.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) tasks: Vec<JoinHandle<Result<()>>>,
    pub(crate) sockets: Vec<SocketFile>,
}

impl Listeners {
    /// Opens what `config` asks for.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub(crate) async fn open(
        config: &Config,
        metrics: Metrics,
        stop: &watch::Receiver<bool>,
    ) -> Result<Self> {
        let mut listeners = Self::default();
        let plugins = &config.plugins;
        let debug = (&plugins.debug.address, plugins.debug.uid, plugins.debug.gid);
        for (page, (address, uid, gid)) in
            [(Page::Metrics, (&plugins.metrics.address, 0, 0)), (Page::Debug, debug)]
        {
            if address.is_empty() {
                continue;
            }
            let site = Arc::new(Site {
                page,
                metrics: metrics.clone(),
                room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            });
            listeners.listen(site, address, (uid, gid), stop.clone()).await?;
        }
        Ok(listeners)
    }

    async fn listen(
        &mut self,
        site: Arc<Site>,
        address: &str,
        (uid, gid): (u32, u32),
        stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        if path.starts_with('/') {
            let (listener, file) = socket::bind(path.as_ref(), uid, gid)?.into_parts();
            self.sockets.push(file);
            let incoming = UnixListenerStream::new(listener);
            self.tasks.push(tokio::spawn(serve(site, incoming, stop)));
            return Ok(());
        }
        let listener = TcpListener::bind(path)
            .await
            .map_err(|e| Error::io(format!("listen on {address}"), e))?;
        let incoming = TcpListenerStream::new(listener);
        self.tasks.push(tokio::spawn(serve(site, incoming, stop)));
        Ok(())
    }
}

/// One listener's part.
#[derive(Debug)]
struct Site {
    page: Page,
    metrics: Metrics,
    room: Arc<Semaphore>,
}

async fn serve<S>(
    site: Arc<Site>,
    mut incoming: impl Stream<Item = std::io::Result<S>> + Unpin,
    stop: watch::Receiver<bool>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connections = async {
        loop {
            let Ok(place) = Arc::clone(&site.room).acquire_owned().await else { return };
            match incoming.next().await {
                None => return,
                Some(Ok(stream)) => {
                    let (site, stop) = (Arc::clone(&site), stop.clone());
                    tokio::spawn(async move {
                        let _place = place;
                        tokio::select! {
                            () = connection(site, stream) => {}
                            () = stopped(stop) => {}
                        }
                    });
                }
                Some(Err(err)) => {
                    tracing::warn!(%err, "http listener");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        () = connections => {}
        () = stopped(stop.clone()) => {}
    }
    Ok(())
}

async fn connection<S>(site: Arc<Site>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request: Request<Incoming>| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(site.answer(request.method(), request.uri().path()).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        // A place is for one who asks, not for one who might.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(err) = served {
        tracing::debug!(%err, "http connection");
    }
}

impl Site {
    async fn answer(&self, method: &Method, path: &str) -> Response<String> {
        let (status, kind, body) = match (self.page, path) {
            _ if method != Method::GET && method != Method::HEAD => {
                (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned())
            }
            (Page::Metrics, "/v1/metrics") => {
                let text = self.metrics.text().await;
                (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            (Page::Debug, "/debug/vars") => (StatusCode::OK, "application/json", vars()),
            _ => (StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".to_owned()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    }
}

/// What somebody who looks at a daemon in trouble wants to know first.
fn vars() -> String {
    let runtime = tokio::runtime::Handle::current().metrics();
    let args: Vec<String> =
        std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    serde_json::json!({
        "cmdline": args,
        "runtime": {
            "workers": runtime.num_workers(),
            "alive_tasks": runtime.num_alive_tasks(),
            "global_queue": runtime.global_queue_depth(),
        },
    })
    .to_string()
}
