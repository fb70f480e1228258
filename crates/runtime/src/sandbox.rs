//! Sandboxes that a shim keeps itself: the sandboxer `shim`.
//!
//! A sandbox of this kind is a shim of version 3 that speaks the sandbox API. It has a bundle of its
//! own, and tasks that name the sandbox join its shim. Nothing is remembered but how to reach it:
//! after a restart it is found by its bundle when somebody asks.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_api::containerd::runtime::sandbox::v1 as wire;
use gantry_api::containerd::runtime::sandbox::v1::sandbox_ttrpc::SandboxClient;
use gantry_api::containerd::types::Metric;
use gantry_core::{Any, Namespace, deadlines, identifiers};
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;
use gantry_ttrpc::{Client, Context};

use crate::binary::{Binary, Versions};
use crate::bootstrap::Bootstrap;
use crate::bundle::{Bundle, Bundles};
use crate::config::Config;
use crate::log::LogReader;
use crate::manager::blocking;
use crate::shim::NAMESPACE_KEY;
use crate::start::{self, Started};
use crate::{Exit, UNKNOWN_EXIT_STATUS, convert, options};

/// The first version of the shim API that has sandboxes.
const VERSION_MIN: u32 = 3;

/// Spec of a sandbox without one.
const NO_SPEC: &[u8] = b"{}";

/// What a sandbox is made of.
#[derive(Clone, Debug, Default)]
pub struct SandboxOptions {
    /// Name of the runtime.
    pub runtime: String,
    /// Options of the runtime, for starting the shim.
    pub runtime_options: Option<Any>,
    /// The spec, as its creator encoded it.
    pub spec: Option<Any>,
    /// Mounts of its root.
    pub rootfs: Vec<Mount>,
    /// Options for the shim's CreateSandbox.
    pub options: Option<Any>,
    /// Path of its network namespace.
    pub netns_path: String,
    /// Annotations.
    pub annotations: HashMap<String, String>,
}

/// A sandbox that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxStarted {
    /// Pid of its process.
    pub pid: u32,
    /// When it was created.
    pub created_at: Option<SystemTime>,
    /// Where its shim listens.
    pub address: String,
    /// Version of the shim's API.
    pub version: u32,
}

/// What a sandbox says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxStatus {
    /// Pid of its process.
    pub pid: u32,
    /// `SANDBOX_READY` or `SANDBOX_NOTREADY`; empty for one that is gone.
    pub state: String,
    /// More about it, if asked for.
    pub info: HashMap<String, String>,
    /// When it was created.
    pub created_at: Option<SystemTime>,
    /// When it ended.
    pub exited_at: Option<SystemTime>,
    /// Whatever else the shim tells.
    pub extra: Option<Any>,
    /// Where its shim listens.
    pub address: String,
    /// Version of the shim's API.
    pub version: u32,
}

type Key = (Namespace, String);

/// The sandboxes of all shims. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    bundles: Bundles,
    versions: Versions,
    /// Held for map accesses, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<Key, Arc<Pod>>,
    /// Keys of sandboxes that are being created.
    starting: HashSet<Key>,
}

/// A sandbox's shim.
#[derive(Debug)]
struct Pod {
    bundle: Bundle,
    bootstrap: Bootstrap,
    client: SandboxClient,
    _log: Option<LogReader>,
}

impl Pod {
    fn is_dead(&self) -> bool {
        self.client.connection().is_closed()
    }
}

/// Gives a key free again.
struct Reservation<'a>(&'a Sandboxes, Key);

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.0.state().starting.remove(&self.1);
    }
}

impl Sandboxes {
    /// The sandboxes below the directories of `config`.
    pub fn new(config: Config) -> Self {
        let bundles = bundles(&config);
        Self {
            inner: Arc::new(Inner {
                config: Arc::new(config),
                bundles,
                versions: Versions::default(),
                state: Mutex::default(),
            }),
        }
    }

    /// Starts a shim and makes it a sandbox. To its end even when the caller goes away.
    ///
    /// # Errors
    /// InvalidArgument for a bad id or runtime name; AlreadyExists; Unimplemented for a shim
    /// without the sandbox API; the shim's own. Nothing is left behind then.
    pub async fn create(&self, ns: &Namespace, id: &str, options: SandboxOptions) -> Result<()> {
        identifiers::validate("sandbox", id)?;
        let (this, key) = (self.clone(), (ns.clone(), id.to_owned()));
        detached(async move { this.create_now(key, options).await }).await
    }

    async fn create_now(&self, key: Key, mut options: SandboxOptions) -> Result<()> {
        let taken = || Error::already_exists(format!("sandbox {:?}", key.1));
        if self.find(&key).await.is_some() || !self.state().starting.insert(key.clone()) {
            return Err(taken());
        }
        let _reservation = Reservation(self, key.clone());
        let runtime = std::mem::take(&mut options.runtime);
        let program = start::program(&self.inner.config, &runtime).await?;
        let start_options = options::for_start(options.runtime_options.as_ref())?;
        let spec = options.spec.take().map_or_else(|| NO_SPEC.to_vec(), |any| any.value);
        let (bundles, (ns, id)) = (self.inner.bundles.clone(), key.clone());
        let bundle = blocking(move || {
            // What a sandbox whose shim is gone has left.
            bundles.bundle(&ns, &id).delete()?;
            bundles.create(&ns, &id, &spec, "")
        })
        .await?;
        let made = self.start_shim(&key, &program, &bundle, start_options.as_ref(), options).await;
        match made {
            Ok(pod) => {
                self.state().pods.insert(key, Arc::new(pod));
                Ok(())
            }
            Err(err) => {
                self.clean_up(&key, &bundle).await;
                Err(err)
            }
        }
    }

    async fn start_shim(
        &self,
        key: &Key,
        program: &Path,
        bundle: &Bundle,
        start_options: Option<&Any>,
        options: SandboxOptions,
    ) -> Result<Pod> {
        let binary = self.binary(key, program, bundle);
        // By the verb: containers of the pod join this shim later.
        let started =
            binary.start_connected(&self.inner.versions, None, start_options, false).await?;
        let Started { bootstrap, connection, log, .. } = started;
        if bootstrap.version < VERSION_MIN {
            let version = bootstrap.version;
            let text = format!("sandbox {:?}: a shim of version {version} has none", key.1);
            return Err(Error::unimplemented(text));
        }
        let client = SandboxClient::new(connection);
        let pod = Pod { bundle: bundle.clone(), bootstrap, client, _log: Some(log) };
        let request = wire::CreateSandboxRequest {
            sandbox_id: key.1.clone(),
            bundle_path: bundle.path.display().to_string(),
            rootfs: options.rootfs.into_iter().map(convert::mount_to_wire).collect(),
            options: options.options.as_ref().map(convert::to_wire),
            netns_path: options.netns_path,
            annotations: options.annotations,
        };
        let ctx = context(&key.0, Some(deadlines::SHIM_SANDBOX));
        pod.client.create_sandbox(&ctx, &request).await?;
        Ok(pod)
    }

    /// Starts a sandbox that was created. If it fails its shim is cleaned up.
    ///
    /// # Errors
    /// Unknown for one that is not there, as clients know it; the shim's own.
    pub async fn start(&self, ns: &Namespace, id: &str) -> Result<SandboxStarted> {
        let key = (ns.clone(), id.to_owned());
        let pod = self.find(&key).await;
        let pod = pod.ok_or_else(|| Error::unknown(format!("sandbox {id:?}: not found")))?;
        let ctx = context(ns, Some(deadlines::SHIM_SANDBOX));
        let request = wire::StartSandboxRequest { sandbox_id: id.to_owned() };
        match pod.client.start_sandbox(&ctx, &request).await {
            Ok(answer) => Ok(SandboxStarted {
                pid: answer.pid,
                created_at: answer.created_at.and_then(convert::to_system_time),
                address: pod.bootstrap.address.clone(),
                version: pod.bootstrap.version,
            }),
            Err(err) => {
                self.clean_up(&key, &pod.bundle).await;
                Err(err.context(format!("failed to start sandbox {id:?}")))
            }
        }
    }

    /// Stops what runs in a sandbox, within `timeout`. One that is gone is stopped.
    ///
    /// # Errors
    /// The shim's own.
    pub async fn stop(&self, ns: &Namespace, id: &str, timeout: Duration) -> Result<()> {
        let Some(pod) = self.find(&(ns.clone(), id.to_owned())).await else { return Ok(()) };
        let timeout_secs = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        let request = wire::StopSandboxRequest { sandbox_id: id.to_owned(), timeout_secs };
        let deadline = deadlines::SHIM_SANDBOX.max(timeout.saturating_add(deadlines::SHIM_RUNTIME));
        match pod.client.stop_sandbox(&context(ns, Some(deadline)), &request).await {
            Err(err) if !err.is_not_found() && !err.is_unavailable() => Err(err),
            _ => Ok(()),
        }
    }

    /// Waits for the end of a sandbox, without a limit. That of one whose shim dies is not known.
    ///
    /// # Errors
    /// NotFound; the shim's own.
    pub async fn wait(&self, ns: &Namespace, id: &str) -> Result<Exit> {
        let pod = self.get(ns, id).await?;
        let request = wire::WaitSandboxRequest { sandbox_id: id.to_owned() };
        match pod.client.wait_sandbox(&context(ns, None), &request).await {
            Ok(answer) => Ok(Exit {
                pid: 0,
                status: answer.exit_status,
                exited_at: answer.exited_at.and_then(convert::to_system_time),
            }),
            Err(_) if pod.is_dead() => {
                let exited_at = Some(SystemTime::now());
                Ok(Exit { pid: 0, status: UNKNOWN_EXIT_STATUS, exited_at })
            }
            Err(err) => Err(err),
        }
    }

    /// What a sandbox says of itself. One that is gone has ended.
    ///
    /// # Errors
    /// The shim's own.
    pub async fn status(&self, ns: &Namespace, id: &str, verbose: bool) -> Result<SandboxStatus> {
        let gone =
            || SandboxStatus { exited_at: Some(SystemTime::now()), ..SandboxStatus::default() };
        let Some(pod) = self.find(&(ns.clone(), id.to_owned())).await else { return Ok(gone()) };
        let request = wire::SandboxStatusRequest { sandbox_id: id.to_owned(), verbose };
        let ctx = context(ns, Some(self.inner.config.deadlines.state));
        let answer = match pod.client.sandbox_status(&ctx, &request).await {
            Err(_) if pod.is_dead() => return Ok(gone()),
            answer => answer?,
        };
        Ok(SandboxStatus {
            pid: answer.pid,
            state: answer.state,
            info: answer.info,
            created_at: answer.created_at.and_then(convert::to_system_time),
            exited_at: answer.exited_at.and_then(convert::to_system_time),
            extra: answer.extra.map(convert::from_wire),
            address: pod.bootstrap.address.clone(),
            version: pod.bootstrap.version,
        })
    }

    /// Ends a sandbox, its shim and its bundle. To its end even when the caller goes away.
    ///
    /// # Errors
    /// NotFound; the shim's own, and then the sandbox is still there.
    pub async fn shutdown(&self, ns: &Namespace, id: &str) -> Result<()> {
        let (this, key) = (self.clone(), (ns.clone(), id.to_owned()));
        detached(async move { this.shutdown_now(&key).await }).await
    }

    async fn shutdown_now(&self, key: &Key) -> Result<()> {
        let pod = self.get(&key.0, &key.1).await?;
        let ctx = context(&key.0, Some(deadlines::SHIM_DELETE));
        let request = wire::ShutdownSandboxRequest { sandbox_id: key.1.clone() };
        match pod.client.shutdown_sandbox(&ctx, &request).await {
            Err(err) if !err.is_not_found() && !pod.is_dead() => return Err(err),
            _ => {}
        }
        let ended = pod.client.connection().closed();
        if tokio::time::timeout(self.inner.config.deadlines.shutdown, ended).await.is_err() {
            tracing::warn!(id = key.1, "the shim of a sandbox did not end when told to");
        }
        self.clean_up(key, &pod.bundle).await;
        Ok(())
    }

    /// The metrics of a sandbox.
    ///
    /// # Errors
    /// NotFound; the shim's own.
    pub async fn metrics(&self, ns: &Namespace, id: &str) -> Result<Option<Metric>> {
        let pod = self.get(ns, id).await?;
        let request = wire::SandboxMetricsRequest { sandbox_id: id.to_owned() };
        let ctx = context(ns, Some(self.inner.config.deadlines.stats));
        Ok(pod.client.sandbox_metrics(&ctx, &request).await?.metrics)
    }

    async fn get(&self, ns: &Namespace, id: &str) -> Result<Arc<Pod>> {
        let pod = self.find(&(ns.clone(), id.to_owned())).await;
        pod.ok_or_else(|| Error::not_found(format!("sandbox {id:?}")))
    }

    /// The sandbox, if its shim is there; connected to anew where it must be.
    async fn find(&self, key: &Key) -> Option<Arc<Pod>> {
        let known = self.state().pods.get(key).cloned();
        if let Some(pod) = known.filter(|pod| !pod.is_dead()) {
            return Some(pod);
        }
        let bundle = self.inner.bundles.bundle(&key.0, &key.1);
        let path = bundle.path.clone();
        let bootstrap = blocking(move || Bootstrap::load(&path)).await.ok()?;
        let connection = Client::connect(&bootstrap.address).ok()?;
        let log = LogReader::open(&bundle.log(), &key.1).ok();
        let client = SandboxClient::new(connection);
        let pod = Arc::new(Pod { bundle, bootstrap, client, _log: log });
        self.state().pods.insert(key.clone(), Arc::clone(&pod));
        Some(pod)
    }

    /// Lets the shim program clean up and removes the bundle.
    async fn clean_up(&self, key: &Key, bundle: &Bundle) {
        self.state().pods.remove(key);
        let read = bundle.clone();
        let program = blocking(move || Ok(read.shim_program())).await.ok().flatten();
        match program {
            Some(program) => self.binary(key, &program, bundle).remove().await,
            None => start::remove_bundle(&key.1, bundle).await,
        }
    }

    fn binary<'a>(&'a self, key: &'a Key, program: &'a Path, bundle: &'a Bundle) -> Binary<'a> {
        let config = &self.inner.config;
        Binary { config, program, namespace: &key.0, id: &key.1, bundle }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the bundles of sandboxes are.
pub(crate) fn bundles(config: &Config) -> Bundles {
    Bundles::new(config.sandbox_root.clone(), config.sandbox_state.clone())
}

/// What goes with a call that may take `timeout`.
fn context(namespace: &Namespace, timeout: Option<Duration>) -> Context {
    let mut context = Context::new();
    context.timeout = timeout;
    context.with(NAMESPACE_KEY, namespace.as_str())
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Err(Error::internal("sandbox: background work panicked")))
}
