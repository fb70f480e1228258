//! `containerd.services.tasks.v1`: what runs.
//!
//! Every call finds the container record first, then the task, so that NotFound names what is
//! really missing. Errors of the shim pass through as they are.

mod checkpoint;
mod create;
mod list;

use std::sync::Arc;

use gantry_api::containerd::services::tasks::v1 as wire;
use gantry_api::containerd::services::tasks::v1::tasks_server::Tasks;
use gantry_api::containerd::v1::types::{self as v1, ProcessInfo};
use gantry_core::Context;
use gantry_core::identifiers;
use gantry_errdefs::{Error, Result as Outcome};
use gantry_images::Differ;
use gantry_metadata::Db;
use gantry_mount::TempRoot;
use gantry_runtime::plugin::{Runtime, Task};
use gantry_runtime::{ExecOptions, Exit, Io, State, Status as TaskStatus};
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// Tasks of containers.
#[derive(Clone)]
pub struct TasksService {
    db: Db,
    runtime: Arc<dyn Runtime>,
    differ: Differ,
    temp: TempRoot,
}

impl std::fmt::Debug for TasksService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TasksService").field("runtime", &self.runtime.id()).finish_non_exhaustive()
    }
}

impl TasksService {
    /// A service over `db` and `runtime`; checkpoints pass through directories below `temp` and
    /// are packed by `differ`.
    pub fn new(db: Db, runtime: Arc<dyn Runtime>, differ: Differ, temp: TempRoot) -> Self {
        Self { db, runtime, differ, temp }
    }

    async fn task(&self, ctx: &Context, id: &str) -> Outcome<Arc<dyn Task>> {
        self.db.containers().get(ctx, id).await?;
        self.runtime.get(&ctx.namespace, id).await
    }
}

fn status_to_wire(status: TaskStatus) -> i32 {
    let status = match status {
        TaskStatus::Unknown => v1::Status::Unknown,
        TaskStatus::Created => v1::Status::Created,
        TaskStatus::Running => v1::Status::Running,
        TaskStatus::Stopped => v1::Status::Stopped,
        TaskStatus::Paused => v1::Status::Paused,
        TaskStatus::Pausing => v1::Status::Pausing,
    };
    status.into()
}

/// The process `id` as clients see it: its own id and not its container's, by long custom.
fn process_to_wire(id: &str, state: State) -> v1::Process {
    v1::Process {
        container_id: String::new(),
        id: id.to_owned(),
        pid: state.pid,
        status: status_to_wire(state.status),
        stdin: state.io.stdin,
        stdout: state.io.stdout,
        stderr: state.io.stderr,
        terminal: state.io.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at.and_then(convert::time_to_wire),
    }
}

/// Asks for the state of a process. A shim that answers with an error of its own still has the
/// process: it is shown as unknown.
async fn process(task: &dyn Task, exec: &str) -> Outcome<v1::Process> {
    let id = if exec.is_empty() { task.id() } else { exec };
    match task.state(exec).await {
        Ok(state) => Ok(process_to_wire(id, state)),
        Err(e) if e.is_not_found() || e.is_unavailable() || e.is_deadline_exceeded() => Err(e),
        Err(e) => {
            tracing::warn!(task = task.id(), exec, error = %e, "no state from the shim");
            Ok(process_to_wire(id, State::default()))
        }
    }
}

fn exit_to_wire(id: &str, exit: Exit) -> wire::DeleteResponse {
    wire::DeleteResponse {
        id: id.to_owned(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: exit.exited_at.and_then(convert::time_to_wire),
    }
}

#[tonic::async_trait]
impl Tasks for TasksService {
    async fn create(
        &self,
        request: Request<wire::CreateTaskRequest>,
    ) -> Result<Response<wire::CreateTaskResponse>, Status> {
        let ctx = call::context(&request)?;
        Ok(Response::new(self.create_task(&ctx, request.into_inner()).await?))
    }

    async fn start(
        &self,
        request: Request<wire::StartRequest>,
    ) -> Result<Response<wire::StartResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let pid = self.task(&ctx, &r.container_id).await?.start(&r.exec_id).await?;
        Ok(Response::new(wire::StartResponse { pid }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteTaskRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let ctx = call::context(&request)?;
        let id = &request.get_ref().container_id;
        self.db.containers().get(&ctx, id).await?;
        let exit = self.runtime.delete(&ctx.namespace, id).await?;
        Ok(Response::new(exit_to_wire(id, exit)))
    }

    async fn delete_process(
        &self,
        request: Request<wire::DeleteProcessRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        if r.exec_id.is_empty() {
            return Err(Error::invalid_argument("exec id must not be empty").into());
        }
        let exit = self.task(&ctx, &r.container_id).await?.delete_process(&r.exec_id).await?;
        Ok(Response::new(exit_to_wire(&r.exec_id, exit)))
    }

    async fn get(
        &self,
        request: Request<wire::GetRequest>,
    ) -> Result<Response<wire::GetResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let task = self.task(&ctx, &r.container_id).await?;
        let process = Some(process(task.as_ref(), &r.exec_id).await?);
        Ok(Response::new(wire::GetResponse { process }))
    }

    async fn list(
        &self,
        request: Request<wire::ListTasksRequest>,
    ) -> Result<Response<wire::ListTasksResponse>, Status> {
        let ctx = call::context(&request)?;
        let tasks = self.runtime.tasks(Some(&ctx.namespace)).await?;
        Ok(Response::new(wire::ListTasksResponse { tasks: list::processes(tasks).await }))
    }

    async fn kill(&self, request: Request<wire::KillRequest>) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let task = self.task(&ctx, &r.container_id).await?;
        task.kill(&r.exec_id, r.signal, r.all).await?;
        Ok(Response::new(()))
    }

    async fn exec(
        &self,
        request: Request<wire::ExecProcessRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let r = request.into_inner();
        if r.exec_id.is_empty() {
            return Err(Error::invalid_argument("exec id must not be empty").into());
        }
        identifiers::validate("exec", &r.exec_id)?;
        let task = self.task(&ctx, &r.container_id).await?;
        let options = ExecOptions {
            spec: r.spec.map(convert::any),
            io: Io { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal },
        };
        task.exec(&r.exec_id, options).await?;
        Ok(Response::new(()))
    }

    async fn resize_pty(
        &self,
        request: Request<wire::ResizePtyRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let task = self.task(&ctx, &r.container_id).await?;
        task.resize(&r.exec_id, r.width, r.height).await?;
        Ok(Response::new(()))
    }

    async fn close_io(
        &self,
        request: Request<wire::CloseIoRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        self.task(&ctx, &r.container_id).await?.close_io(&r.exec_id, r.stdin).await?;
        Ok(Response::new(()))
    }

    async fn pause(
        &self,
        request: Request<wire::PauseTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        self.task(&ctx, &request.get_ref().container_id).await?.pause().await?;
        Ok(Response::new(()))
    }

    async fn resume(
        &self,
        request: Request<wire::ResumeTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        self.task(&ctx, &request.get_ref().container_id).await?.resume().await?;
        Ok(Response::new(()))
    }

    async fn list_pids(
        &self,
        request: Request<wire::ListPidsRequest>,
    ) -> Result<Response<wire::ListPidsResponse>, Status> {
        let ctx = call::context(&request)?;
        let pids = self.task(&ctx, &request.get_ref().container_id).await?.pids().await?;
        let processes = pids
            .into_iter()
            .map(|p| ProcessInfo { pid: p.pid, info: p.info.map(convert::any_to_wire) })
            .collect();
        Ok(Response::new(wire::ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<wire::CheckpointTaskRequest>,
    ) -> Result<Response<wire::CheckpointTaskResponse>, Status> {
        let ctx = call::context(&request)?;
        Ok(Response::new(self.checkpoint_task(&ctx, request.into_inner()).await?))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let r = request.into_inner();
        let task = self.task(&ctx, &r.container_id).await?;
        task.update(r.resources.map(convert::any), r.annotations).await?;
        Ok(Response::new(()))
    }

    async fn metrics(
        &self,
        request: Request<wire::MetricsRequest>,
    ) -> Result<Response<wire::MetricsResponse>, Status> {
        let ctx = call::context(&request)?;
        let filter = list::metrics_filter(&request.get_ref().filters)?;
        let tasks = self.runtime.tasks(Some(&ctx.namespace)).await?;
        Ok(Response::new(wire::MetricsResponse { metrics: list::metrics(tasks, &filter).await }))
    }

    async fn wait(
        &self,
        request: Request<wire::WaitRequest>,
    ) -> Result<Response<wire::WaitResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let exit = self.task(&ctx, &r.container_id).await?.wait(&r.exec_id).await?;
        Ok(Response::new(wire::WaitResponse {
            exit_status: exit.status,
            exited_at: exit.exited_at.and_then(convert::time_to_wire),
        }))
    }
}
