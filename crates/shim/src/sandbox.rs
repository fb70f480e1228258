//! The sandbox service: a pod without a process of its own.
//!
//! With the sandboxer `shim` a daemon asks the shim itself for a pod. Here a pod is the shim: it
//! lives from CreateSandbox to ShutdownSandbox, containers are created in it through the task
//! service, and its end takes them along. Network namespaces are the daemon's; they arrive in the
//! containers' specs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_api::containerd::runtime::sandbox::v1 as api;
use gantry_api::containerd::runtime::sandbox::v1::sandbox_ttrpc::Sandbox;
use gantry_api::containerd::types::{Metric, Platform};
use gantry_errdefs::{Class, Error, Result};
use gantry_ttrpc::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock::timestamp;
use crate::task::{KILLED_DEADLINE, Shim};

/// How long the shim lives on when it was told to end: Go's ttrpc client may take the end of the
/// connection for the answer that has come before it, if it finds both.
const HEARD_DELAY: Duration = Duration::from_millis(100);

/// The one sandbox a shim can be.
#[derive(Debug)]
pub(crate) struct SandboxService {
    shim: Arc<Shim>,
    pod: Mutex<Option<Pod>>,
    ended: Notify,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pod {
    id: String,
    created_at: SystemTime,
    started: bool,
    exited_at: Option<SystemTime>,
}

impl SandboxService {
    /// A shim that is no sandbox yet.
    pub(crate) fn new(shim: Arc<Shim>) -> Arc<Self> {
        Arc::new(Self { shim, pod: Mutex::default(), ended: Notify::new() })
    }

    /// What the next program needs to go on with it.
    pub(crate) fn carry(&self) -> Option<Pod> {
        self.pod().clone()
    }

    /// Goes on with the pod of the program before this one.
    pub(crate) fn resume(&self, pod: Option<Pod>) {
        self.shim.set_sandboxed(pod.is_some());
        *self.pod() = pod;
    }

    fn pod(&self) -> MutexGuard<'_, Option<Pod>> {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads or changes the sandbox `id`.
    fn with<T>(&self, id: &str, act: impl FnOnce(&mut Pod) -> T) -> Result<T> {
        let mut pod = self.pod();
        let pod = pod.as_mut().filter(|pod| pod.id == id);
        pod.map(act).ok_or_else(|| Error::not_found(format!("sandbox {id}")))
    }

    fn end(&self, id: &str) -> Result<()> {
        self.with(id, |pod| {
            pod.exited_at.get_or_insert_with(SystemTime::now);
        })?;
        self.ended.notify_waiters();
        Ok(())
    }
}

impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: Context,
        r: api::CreateSandboxRequest,
    ) -> Result<api::CreateSandboxResponse> {
        let mut pod = self.pod();
        if let Some(pod) = pod.as_ref() {
            return Err(Error::already_exists(format!("sandbox {}", pod.id)));
        }
        let (id, created_at) = (r.sandbox_id, SystemTime::now());
        *pod = Some(Pod { id, created_at, started: false, exited_at: None });
        self.shim.set_sandboxed(true);
        Ok(api::CreateSandboxResponse {})
    }

    async fn start_sandbox(
        &self,
        _: Context,
        r: api::StartSandboxRequest,
    ) -> Result<api::StartSandboxResponse> {
        let created_at = self.with(&r.sandbox_id, |pod| {
            pod.started = true;
            pod.created_at
        })?;
        Ok(api::StartSandboxResponse {
            pid: std::process::id(),
            created_at: Some(timestamp(created_at)),
            spec: None,
        })
    }

    async fn platform(&self, _: Context, _: api::PlatformRequest) -> Result<api::PlatformResponse> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            ..Platform::default()
        };
        Ok(api::PlatformResponse { platform: Some(platform) })
    }

    async fn stop_sandbox(
        &self,
        _: Context,
        r: api::StopSandboxRequest,
    ) -> Result<api::StopSandboxResponse> {
        self.with(&r.sandbox_id, |_| ())?;
        let patience = match r.timeout_secs {
            0 => KILLED_DEADLINE,
            seconds => Duration::from_secs(seconds.into()),
        };
        self.shim.kill_containers(patience).await;
        self.end(&r.sandbox_id)?;
        Ok(api::StopSandboxResponse {})
    }

    async fn wait_sandbox(
        &self,
        ctx: Context,
        r: api::WaitSandboxRequest,
    ) -> Result<api::WaitSandboxResponse> {
        loop {
            let ended = self.ended.notified();
            if let Some(at) = self.with(&r.sandbox_id, |pod| pod.exited_at)? {
                let exited_at = Some(timestamp(at));
                return Ok(api::WaitSandboxResponse { exit_status: 0, exited_at });
            }
            tokio::select! {
                () = ended => {}
                () = ctx.done() => {
                    let what = format!("wait for sandbox {}", r.sandbox_id);
                    return Err(Error::new(Class::Canceled, what));
                }
            }
        }
    }

    async fn sandbox_status(
        &self,
        _: Context,
        r: api::SandboxStatusRequest,
    ) -> Result<api::SandboxStatusResponse> {
        let pod = self.with(&r.sandbox_id, |pod| pod.clone())?;
        let ready = pod.started && pod.exited_at.is_none();
        let state = if ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" };
        let mut info = HashMap::new();
        if r.verbose {
            info.insert("version".to_owned(), crate::VERSION.to_owned());
        }
        Ok(api::SandboxStatusResponse {
            sandbox_id: pod.id,
            pid: std::process::id(),
            state: state.to_owned(),
            info,
            created_at: Some(timestamp(pod.created_at)),
            exited_at: pod.exited_at.map(timestamp),
            extra: None,
        })
    }

    async fn ping_sandbox(&self, _: Context, r: api::PingRequest) -> Result<api::PingResponse> {
        self.with(&r.sandbox_id, |_| api::PingResponse {})
    }

    async fn shutdown_sandbox(
        &self,
        _: Context,
        r: api::ShutdownSandboxRequest,
    ) -> Result<api::ShutdownSandboxResponse> {
        self.with(&r.sandbox_id, |_| ())?;
        self.shim.kill_containers(KILLED_DEADLINE).await;
        self.end(&r.sandbox_id)?;
        self.shim.set_sandboxed(false);
        let shim = self.shim.clone();
        tokio::spawn(async move {
            tokio::time::sleep(HEARD_DELAY).await;
            shim.stop.notify_one();
        });
        Ok(api::ShutdownSandboxResponse {})
    }

    async fn sandbox_metrics(
        &self,
        _: Context,
        r: api::SandboxMetricsRequest,
    ) -> Result<api::SandboxMetricsResponse> {
        let id = self.with(&r.sandbox_id, |pod| pod.id.clone())?;
        // The pod has no cgroup of its own; its containers are asked for theirs.
        let metrics = Metric { timestamp: Some(timestamp(SystemTime::now())), id, data: None };
        Ok(api::SandboxMetricsResponse { metrics: Some(metrics) })
    }
}
