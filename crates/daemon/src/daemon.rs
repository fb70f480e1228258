//! Starting and stopping the daemon inside a process.

use std::path::PathBuf;
use std::sync::Arc;

use gantry_errdefs::{Error, Result};
use gantry_mount::TempRoot;
use gantry_runtime::plugin::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tracing::warn;

use crate::config::Config;
use crate::dirs::{self, RootLock};
use crate::http::Listeners;
use crate::server::{self, stopped};
use crate::socket::{self, SocketFile};
use crate::wiring::{self, Parts};

/// Connections waiting to be accepted in-process; each is made at once.
const IN_PROCESS_BACKLOG: usize = 8;

/// How long background work may take to end once the listeners are closed.
const STOP_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Which doors the daemon opens beside the in-process one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doors {
    /// The gRPC socket, and ttrpc for shims.
    Sockets,
    /// Only ttrpc: shims are other processes whatever the client is.
    ShimsOnly,
}

/// The daemon; see [`Daemon::start`].
#[derive(Debug)]
pub struct Daemon;

/// A daemon with parts of the caller's own, before its start.
pub struct Builder {
    config: Config,
    runtime: Option<Arc<dyn Runtime>>,
}

impl Builder {
    /// Runs tasks by `runtime` instead of shims.
    #[must_use]
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// As [`Daemon::start`].
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start(self) -> Result<Running> {
        start(self, Doors::Sockets).await
    }

    /// As [`Daemon::start_embedded`].
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start_embedded(self) -> Result<Running> {
        start(self, Doors::ShimsOnly).await
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runtime = self.runtime.as_ref().map(|r| r.id());
        f.debug_struct("Builder").field("config", &self.config).field("runtime", &runtime).finish()
    }
}

impl Daemon {
    /// Starts putting together a daemon with parts of the caller's own.
    pub fn builder(config: Config) -> Builder {
        Builder { config, runtime: None }
    }

    /// Starts a daemon that serves on the sockets of `config` and in-process. Everything it left
    /// unfinished when it was last killed is repaired before the sockets open.
    ///
    /// # Errors
    /// InvalidArgument for a bad configuration, FailedPrecondition when another daemon uses the
    /// root or a socket, else what went wrong while starting.
    pub async fn start(config: Config) -> Result<Running> {
        Self::builder(config).start().await
    }

    /// Starts a daemon that serves in-process only ([`Running::channel`]).
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start_embedded(config: Config) -> Result<Running> {
        Self::builder(config).start_embedded().await
    }
}

async fn start(builder: Builder, doors: Doors) -> Result<Running> {
    let Builder { config, runtime } = builder;
    config.validate()?;
    set_oom_score(config.oom_score);
    let (config, lock, temp) = tokio::task::spawn_blocking(move || prepare(config))
        .await
        .map_err(|e| Error::internal(format!("start: {e}")))??;
    let (stop, stopping) = watch::channel(false);
    let (serving, serving_now) = watch::channel(false);
    // Shims of an earlier run connect as soon as the socket is there; they wait in its backlog
    // until their events can be taken.
    let ttrpc = &config.plugins.ttrpc;
    let ttrpc_path = PathBuf::from(config.ttrpc_address());
    let (listener, file) = socket::bind(&ttrpc_path, ttrpc.uid, ttrpc.gid)?.into_parts();
    let mut sockets = vec![file];
    let mut parts = Parts::open(&config, runtime, temp, serving_now).await?;
    let shims = wiring::shim_server(&parts);
    let until = stopped(stopping.clone());
    let mut tasks = vec![tokio::spawn(async move {
        shims.serve(listener, until).await;
        Ok(())
    })];
    parts.start();

    let routes: Routes = wiring::routes(&parts).prepare();
    let (accept, accepted) = mpsc::channel(IN_PROCESS_BACKLOG);
    let calls = wiring::calls(&config);
    let (in_process, until) = (routes.clone(), stopping.clone());
    tasks.push(server::serve_in_process(in_process, calls.clone(), accepted, until));
    if doors == Doors::Sockets {
        let grpc = &config.plugins.grpc;
        let (listener, file) =
            socket::bind(config.address().as_ref(), grpc.uid, grpc.gid)?.into_parts();
        sockets.push(file);
        tasks.push(server::serve_socket(routes, calls.clone(), listener, stopping.clone()));
        let metrics = wiring::metrics(&parts, calls);
        let mut http = Listeners::open(&config, metrics, &stopping).await?;
        tasks.append(&mut http.tasks);
        sockets.append(&mut http.sockets);
    }
    serving.send_replace(true);
    Ok(Running {
        address: config.address().to_owned(),
        channel: crate::client::in_process(accept),
        stop,
        serving,
        tasks,
        sockets,
        parts: Some(parts),
        _lock: lock,
    })
}

/// The blocking part of a start, all before anything is served.
fn prepare(config: Config) -> Result<(Config, RootLock, TempRoot)> {
    dirs::create(&config)?;
    let lock = dirs::lock(&config.root, dirs::LOCK_WAIT_MAX)?;
    let temp = dirs::temp_mounts(&config.root)?;
    Ok((config, lock, temp))
}

fn set_oom_score(score: i32) {
    if score == 0 {
        return;
    }
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(score, error = %e, "oom_score cannot be set");
    }
}

/// A daemon that serves. Dropping it stops serving at once; [`Running::shutdown`] lets calls in
/// flight end.
pub struct Running {
    address: String,
    channel: Channel,
    stop: watch::Sender<bool>,
    serving: watch::Sender<bool>,
    tasks: Vec<JoinHandle<Result<()>>>,
    /// Their files go away with the daemon.
    sockets: Vec<SocketFile>,
    parts: Option<Parts>,
    /// Released last: nobody else may open the root before.
    _lock: RootLock,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Running {
    /// The gRPC socket; nobody listens there when the daemon is embedded.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A channel to the services inside this process.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Resolves when a listener fails; never while all is well.
    pub async fn failed(&self) -> Error {
        loop {
            if self.tasks.iter().any(JoinHandle::is_finished) {
                return Error::internal("a listener of the daemon has ended");
            }
            tokio::time::sleep(LISTENER_POLL).await;
        }
    }

    /// Stops: no new calls, a moment for those in flight, background work ended, everything
    /// durable. Containers live on.
    pub async fn shutdown(mut self) {
        self.serving.send_replace(false);
        self.stop.send_replace(true);
        for task in std::mem::take(&mut self.tasks) {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => warn!(error = %e, "while stopping"),
                Err(e) => warn!(error = %e, "while stopping"),
            }
        }
        self.sockets.clear();
        if let Some(parts) = self.parts.take()
            && tokio::time::timeout(STOP_MAX, parts.close()).await.is_err()
        {
            warn!("background work did not end in time");
        }
    }
}

/// How often the listeners are looked after: a dead one is a bug, so seconds do not matter.
const LISTENER_POLL: std::time::Duration = std::time::Duration::from_secs(5);
