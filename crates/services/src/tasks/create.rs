//! `Create`: from the container record and the request to a task.

use gantry_api::Payload as _;
use gantry_api::containerd::linux::runc::CreateOptions as OldOptions;
use gantry_api::containerd::runc::v1::Options as RuncOptions;
use gantry_api::containerd::services::tasks::v1 as wire;
use gantry_core::Context;
use gantry_errdefs::{Error, Result};
use gantry_runtime::{CreateOptions, Io};

use super::TasksService;
use super::checkpoint::{self, ScratchDir};
use crate::{call, convert};

/// Runtimes whose task options must be runc's.
const RUNC_NAMES: [&str; 2] = ["io.containerd.runc.v1", "io.containerd.runc.v2"];

impl TasksService {
    pub(super) async fn create_task(
        &self,
        ctx: &Context,
        request: wire::CreateTaskRequest,
    ) -> Result<wire::CreateTaskResponse> {
        let id = request.container_id;
        let container = self.db.containers().get(ctx, &id).await?;
        if self.runtime.get(&ctx.namespace, &id).await.is_ok() {
            return Err(Error::already_exists(format!("task {id}")));
        }
        let mut restore = restore_path(&container.runtime.name, request.options.as_ref())?;
        // The task takes it along: shims restore when the task is started.
        let mut scratch = None;
        if let Some(wire) = request.checkpoint.filter(|_| restore.is_empty()) {
            let dir = self.fetch_checkpoint(ctx, convert::descriptor(wire)?).await?;
            restore = dir.path().to_string_lossy().into_owned();
            scratch = Some(dir);
        }
        let runtime = match request.runtime_path.as_str() {
            "" => container.runtime.name,
            path => path.to_owned(),
        };
        let task_api = (!request.task_api_address.is_empty())
            .then_some((request.task_api_address, request.task_api_version));
        let options = CreateOptions {
            spec: call::required(container.spec, "container spec")?,
            rootfs: convert::mounts(request.rootfs),
            io: Io {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            checkpoint: restore,
            take_checkpoint: scratch.is_some(),
            runtime,
            runtime_options: container.runtime.options,
            task_options: request.options.map(convert::any),
            sandbox_id: container.sandbox_id,
            task_api,
        };
        let task = self.runtime.create(&ctx.namespace, &id, options).await?;
        if let Some(dir) = scratch {
            dir.moved();
        }
        let pid = task.pid().await?;
        Ok(wire::CreateTaskResponse { container_id: id, pid })
    }

    async fn fetch_checkpoint(
        &self,
        ctx: &Context,
        descriptor: gantry_core::Descriptor,
    ) -> Result<ScratchDir> {
        if descriptor.media_type != checkpoint::CRIU_MEDIA_TYPE {
            return Err(Error::invalid_argument(format!(
                "unsupported checkpoint type {:?}",
                descriptor.media_type
            )));
        }
        let reader = self.db.content().reader(ctx, &descriptor.digest).await?;
        let dir = ScratchDir::make(&self.temp).await?;
        self.differ
            .apply_stream(reader.into_blocking(), vec![dir.mount()], false)
            .await
            .map_err(|e| e.context(format!("checkpoint {}", descriptor.digest)))?;
        Ok(dir)
    }
}

/// The directory that the options name to restore from; empty for none.
///
/// # Errors
/// InvalidArgument for options of another type than the runtime takes.
fn restore_path(runtime: &str, options: Option<&prost_types::Any>) -> Result<String> {
    let Some(options) = options.filter(|o| !o.type_url.is_empty()) else {
        return Ok(String::new());
    };
    if let Some(new) = options.unpack::<RuncOptions>()? {
        return Ok(new.criu_image_path);
    }
    if let Some(old) = options.unpack::<OldOptions>()? {
        return Ok(old.criu_image_path);
    }
    if RUNC_NAMES.contains(&runtime) {
        return Err(Error::invalid_argument(format!(
            "task options {:?}: not those of runtime {runtime}",
            options.type_url
        )));
    }
    Ok(String::new())
}
