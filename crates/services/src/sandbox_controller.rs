//! `containerd.services.sandbox.v1.Controller`: sandboxes of the controller that each call names.
//!
//! `shim` is built in: the shim keeps the sandbox itself. The others are proxy plugins, which get
//! the messages as they are.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use gantry_api::Payload as _;
use gantry_api::containerd::events::{SandboxCreate, SandboxExit, SandboxStart};
use gantry_api::containerd::services::sandbox::v1 as wire;
use gantry_api::containerd::services::sandbox::v1::controller_client::ControllerClient;
use gantry_api::containerd::services::sandbox::v1::controller_server::Controller;
use gantry_core::{Context, deadlines};
use gantry_errdefs::{Error, Result};
use gantry_events::Exchange;
use gantry_metadata::{Db, Sandbox};
use gantry_proxy::Plugin;
use gantry_runtime::{SandboxOptions, Sandboxes};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// The sandboxer that is built in.
const SHIM: &str = "shim";

/// Controllers of sandboxes.
#[derive(Clone, Debug)]
pub struct SandboxControllerService {
    db: Db,
    exchange: Exchange,
    shims: Sandboxes,
    plugins: BTreeMap<String, Plugin>,
}

/// Who does it.
enum By<'a> {
    Shim,
    Plugin(&'a Plugin),
}

impl SandboxControllerService {
    /// The controllers `shims` and `plugins`. Records of sandboxes are in `db`.
    pub fn new(
        db: Db,
        exchange: Exchange,
        shims: Sandboxes,
        plugins: BTreeMap<String, Plugin>,
    ) -> Self {
        Self { db, exchange, shims, plugins }
    }

    fn by(&self, sandboxer: &str) -> Result<By<'_>> {
        match sandboxer {
            "" => Err(Error::invalid_argument("sandboxer must be set")),
            SHIM => Ok(By::Shim),
            name => self.plugins.get(name).map(By::Plugin).ok_or_else(|| {
                Error::not_found(format!("sandboxer {name:?}: no sandbox controller of this name"))
            }),
        }
    }

    fn publish<M: prost::Name>(&self, ctx: &Context, topic: &str, event: &M) {
        let event = convert::any(prost_types::Any::pack(event));
        if let Err(err) = self.exchange.publish(&ctx.namespace, topic, event) {
            tracing::warn!(topic, %err, "event not published");
        }
    }

    /// What a client says of a sandbox, or what its record says.
    async fn record(
        &self,
        ctx: &Context,
        request: &mut wire::ControllerCreateRequest,
    ) -> Result<Sandbox> {
        match request.sandbox.take() {
            Some(sandbox) => Ok(convert::sandbox(sandbox)),
            None => self.db.sandboxes().get(ctx, &request.sandbox_id).await,
        }
    }

    async fn create_by_shim(
        &self,
        ctx: &Context,
        mut request: wire::ControllerCreateRequest,
    ) -> Result<()> {
        let record = self.record(ctx, &mut request).await?;
        let options = SandboxOptions {
            runtime: record.runtime.name,
            runtime_options: record.runtime.options,
            spec: record.spec,
            rootfs: convert::mounts(request.rootfs),
            options: request.options.map(convert::any),
            netns_path: request.netns_path,
            annotations: request.annotations,
        };
        self.shims.create(&ctx.namespace, &request.sandbox_id, options).await
    }
}

/// Passes a message on to a plugin. Only a wait has no deadline.
async fn pass_on<T>(
    plugin: &Plugin,
    what: &str,
    deadline: Option<Duration>,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    match deadline {
        Some(deadline) => plugin.call(what, deadline, call).await,
        None => plugin.wait(what, call).await,
    }
}

fn client(plugin: &Plugin) -> ControllerClient<Channel> {
    ControllerClient::new(plugin.channel())
}

/// A method done by a plugin.
macro_rules! passed_on {
    ($plugin:ident, $request:ident, $method:ident, $deadline:expr) => {{
        let what = format!("{} of {:?}", stringify!($method), $request.get_ref().sandbox_id);
        let (metadata, _, message) = $request.into_parts();
        let onward = call::onward(&metadata, message);
        pass_on($plugin, &what, $deadline, client($plugin).$method(onward)).await?
    }};
}

/// Makes the methods that a plugin does by itself, and the rest of each for the shim.
macro_rules! by_plugin {
    ($self:ident, $request:ident, $method:ident, $deadline:expr) => {
        if let By::Plugin(plugin) = $self.by(&$request.get_ref().sandboxer)? {
            return Ok(Response::new(passed_on!(plugin, $request, $method, $deadline)));
        }
    };
}

const SLOW: Option<Duration> = Some(deadlines::SHIM_SANDBOX);
const PROMPT: Option<Duration> = Some(deadlines::PLUGIN_READ);

#[tonic::async_trait]
impl Controller for SandboxControllerService {
    async fn create(
        &self,
        request: Request<wire::ControllerCreateRequest>,
    ) -> Result<Response<wire::ControllerCreateResponse>, Status> {
        let ctx = call::context(&request)?;
        let sandbox_id = request.get_ref().sandbox_id.clone();
        let answer = match self.by(&request.get_ref().sandboxer)? {
            By::Shim => {
                self.create_by_shim(&ctx, request.into_inner()).await?;
                wire::ControllerCreateResponse { sandbox_id: sandbox_id.clone() }
            }
            By::Plugin(plugin) => passed_on!(plugin, request, create, SLOW),
        };
        self.publish(&ctx, "/sandboxes/create", &SandboxCreate { sandbox_id });
        Ok(Response::new(answer))
    }

    async fn start(
        &self,
        request: Request<wire::ControllerStartRequest>,
    ) -> Result<Response<wire::ControllerStartResponse>, Status> {
        let ctx = call::context(&request)?;
        let sandbox_id = request.get_ref().sandbox_id.clone();
        let answer = match self.by(&request.get_ref().sandboxer)? {
            By::Shim => {
                let started = self.shims.start(&ctx.namespace, &sandbox_id).await?;
                wire::ControllerStartResponse {
                    sandbox_id: sandbox_id.clone(),
                    pid: started.pid,
                    created_at: started.created_at.and_then(convert::time_to_wire),
                    address: started.address,
                    version: started.version,
                    ..wire::ControllerStartResponse::default()
                }
            }
            By::Plugin(plugin) => passed_on!(plugin, request, start, SLOW),
        };
        self.publish(&ctx, "/sandboxes/start", &SandboxStart { sandbox_id });
        Ok(Response::new(answer))
    }

    async fn stop(
        &self,
        request: Request<wire::ControllerStopRequest>,
    ) -> Result<Response<wire::ControllerStopResponse>, Status> {
        let ctx = call::context(&request)?;
        let timeout = Duration::from_secs(u64::from(request.get_ref().timeout_secs));
        let deadline = deadlines::SHIM_SANDBOX.max(timeout + deadlines::SHIM_RUNTIME);
        by_plugin!(self, request, stop, Some(deadline));
        self.shims.stop(&ctx.namespace, &request.get_ref().sandbox_id, timeout).await?;
        Ok(Response::new(wire::ControllerStopResponse {}))
    }

    async fn wait(
        &self,
        request: Request<wire::ControllerWaitRequest>,
    ) -> Result<Response<wire::ControllerWaitResponse>, Status> {
        let ctx = call::context(&request)?;
        let sandbox_id = request.get_ref().sandbox_id.clone();
        let answer = match self.by(&request.get_ref().sandboxer)? {
            By::Shim => {
                let exit = self.shims.wait(&ctx.namespace, &sandbox_id).await?;
                wire::ControllerWaitResponse {
                    exit_status: exit.status,
                    exited_at: exit.exited_at.and_then(convert::time_to_wire),
                }
            }
            By::Plugin(plugin) => passed_on!(plugin, request, wait, None),
        };
        let (exit_status, exited_at) = (answer.exit_status, answer.exited_at);
        let event = SandboxExit { sandbox_id, exit_status, exited_at };
        self.publish(&ctx, "/sandboxes/exit", &event);
        Ok(Response::new(answer))
    }

    async fn status(
        &self,
        request: Request<wire::ControllerStatusRequest>,
    ) -> Result<Response<wire::ControllerStatusResponse>, Status> {
        let ctx = call::context(&request)?;
        by_plugin!(self, request, status, PROMPT);
        let r = request.into_inner();
        let status = self.shims.status(&ctx.namespace, &r.sandbox_id, r.verbose).await?;
        Ok(Response::new(wire::ControllerStatusResponse {
            sandbox_id: r.sandbox_id,
            pid: status.pid,
            state: status.state,
            info: status.info,
            created_at: status.created_at.and_then(convert::time_to_wire),
            exited_at: status.exited_at.and_then(convert::time_to_wire),
            extra: status.extra.map(convert::any_to_wire),
            address: status.address,
            version: status.version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<wire::ControllerShutdownRequest>,
    ) -> Result<Response<wire::ControllerShutdownResponse>, Status> {
        let ctx = call::context(&request)?;
        by_plugin!(self, request, shutdown, SLOW);
        self.shims.shutdown(&ctx.namespace, &request.get_ref().sandbox_id).await?;
        Ok(Response::new(wire::ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<wire::ControllerMetricsRequest>,
    ) -> Result<Response<wire::ControllerMetricsResponse>, Status> {
        let ctx = call::context(&request)?;
        by_plugin!(self, request, metrics, PROMPT);
        let metrics = self.shims.metrics(&ctx.namespace, &request.get_ref().sandbox_id).await?;
        Ok(Response::new(wire::ControllerMetricsResponse { metrics }))
    }

    async fn update(
        &self,
        request: Request<wire::ControllerUpdateRequest>,
    ) -> Result<Response<wire::ControllerUpdateResponse>, Status> {
        call::context(&request)?;
        let by = self.by(&request.get_ref().sandboxer)?;
        if request.get_ref().sandbox.is_none() && matches!(by, By::Shim) {
            // Clients know this one as Unknown.
            return Err(Error::unknown("sandbox can not be nil").into());
        }
        by_plugin!(self, request, update, SLOW);
        // The shim keeps nothing of the record.
        Ok(Response::new(wire::ControllerUpdateResponse {}))
    }

    async fn platform(
        &self,
        _: Request<wire::ControllerPlatformRequest>,
    ) -> Result<Response<wire::ControllerPlatformResponse>, Status> {
        Err(Status::unimplemented("method Platform not implemented"))
    }
}
