//! The task API over a shim's connection.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use gantry_api::containerd::task::v2;
use gantry_core::{Any, Namespace, identifiers};
use gantry_errdefs::{Error, Result};

use crate::plugin::Task;
use crate::shim::Shim;
use crate::{ExecOptions, Exit, ProcessInfo, State, convert, options};

/// Makes one call with its deadline and notes whether it was answered.
macro_rules! call {
    ($shim:expr, $method:ident, $deadline:expr, $request:expr) => {{
        let shim: &Shim = $shim;
        let deadline: Option<Duration> = $deadline;
        let result = shim.tasks().$method(&shim.context(deadline), &$request).await;
        shim.answered(result)
    }};
}

impl Shim {
    /// The state of a process, within `timeout`.
    pub(crate) async fn state_within(&self, exec: &str, timeout: Duration) -> Result<State> {
        let request = v2::StateRequest { id: self.id.clone(), exec_id: exec.to_owned() };
        call!(self, state, Some(timeout), request).map(convert::state)
    }

    /// Deletes a process that has stopped.
    pub(crate) async fn delete(&self, exec: &str, timeout: Duration) -> Result<Exit> {
        let request = v2::DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned() };
        call!(self, delete, Some(timeout), request).map(convert::deleted)
    }

    fn not_found(&self) -> Error {
        Error::not_found(format!("task {} not found", self.id))
    }
}

#[async_trait]
impl Task for Shim {
    fn id(&self) -> &str {
        &self.id
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn bundle(&self) -> &Path {
        &self.bundle.path
    }

    fn sandbox_id(&self) -> &str {
        &self.sandbox_id
    }

    fn is_degraded(&self) -> bool {
        Self::is_degraded(self)
    }

    async fn pid(&self) -> Result<u32> {
        if let Some(pid) = self.created_pid() {
            return Ok(pid);
        }
        self.connect(self.config.deadlines.memory).await.map(|answer| answer.task_pid)
    }

    async fn state(&self, exec: &str) -> Result<State> {
        let result = self.state_within(exec, self.config.deadlines.state).await;
        // Clients take NotFound for the end of a task; its exit is being published.
        if result.is_err() && self.is_dead() { Err(self.not_found()) } else { result }
    }

    async fn start(&self, exec: &str) -> Result<u32> {
        let request = v2::StartRequest { id: self.id.clone(), exec_id: exec.to_owned() };
        call!(self, start, Some(self.config.deadlines.start), request).map(|answer| answer.pid)
    }

    async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request =
            v2::KillRequest { id: self.id.clone(), exec_id: exec.to_owned(), signal, all };
        call!(self, kill, Some(self.config.deadlines.runtime), request)
    }

    async fn exec(&self, exec: &str, options: ExecOptions) -> Result<()> {
        identifiers::validate("exec", exec)?;
        let request = v2::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: options.io.terminal,
            stdin: options.io.stdin,
            stdout: options.io.stdout,
            stderr: options.io.stderr,
            spec: options.spec.as_ref().map(convert::to_wire),
        };
        // A process of this name that was deleted before it ran may have left a wait without end.
        self.waits.forget(exec);
        call!(self, exec, Some(self.config.deadlines.memory), request)
    }

    async fn delete_process(&self, exec: &str) -> Result<Exit> {
        if exec.is_empty() {
            return Err(Error::invalid_argument("exec id: empty"));
        }
        self.delete(exec, self.config.deadlines.delete).await
    }

    async fn wait(&self, exec: &str) -> Result<Exit> {
        let (tasks, context) = (self.tasks(), self.context(None));
        let request = v2::WaitRequest { id: self.id.clone(), exec_id: exec.to_owned() };
        let call = async move { tasks.wait(&context, &request).await };
        let answer = match self.answered(self.waits.join(exec, call).await) {
            Ok(answer) => answer,
            Err(_) if self.is_dead() && exec.is_empty() => return self.burial().await,
            Err(err) => return Err(err),
        };
        Ok(Exit {
            pid: 0,
            status: answer.exit_status,
            exited_at: answer.exited_at.and_then(convert::to_system_time),
        })
    }

    async fn resize(&self, exec: &str, width: u32, height: u32) -> Result<()> {
        let request =
            v2::ResizePtyRequest { id: self.id.clone(), exec_id: exec.to_owned(), width, height };
        call!(self, resize_pty, Some(self.config.deadlines.memory), request)
    }

    async fn close_io(&self, exec: &str, stdin: bool) -> Result<()> {
        let request = v2::CloseIoRequest { id: self.id.clone(), exec_id: exec.to_owned(), stdin };
        call!(self, close_io, Some(self.config.deadlines.memory), request)
    }

    async fn pause(&self) -> Result<()> {
        let request = v2::PauseRequest { id: self.id.clone() };
        call!(self, pause, Some(self.config.deadlines.freeze), request)
    }

    async fn resume(&self) -> Result<()> {
        let request = v2::ResumeRequest { id: self.id.clone() };
        call!(self, resume, Some(self.config.deadlines.freeze), request)
    }

    async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        let request = v2::PidsRequest { id: self.id.clone() };
        let answer = call!(self, pids, Some(self.config.deadlines.runtime), request)?;
        Ok(answer.processes.into_iter().map(convert::process_info).collect())
    }

    async fn checkpoint(&self, path: &Path, options: Option<Any>) -> Result<()> {
        let options = options::for_checkpoint(options)?;
        let request = v2::CheckpointTaskRequest {
            id: self.id.clone(),
            path: path.display().to_string(),
            options: options.as_ref().map(convert::to_wire),
        };
        call!(self, checkpoint, Some(self.config.deadlines.checkpoint), request)
    }

    async fn update(
        &self,
        resources: Option<Any>,
        annotations: HashMap<String, String>,
    ) -> Result<()> {
        let request = v2::UpdateTaskRequest {
            id: self.id.clone(),
            resources: resources.as_ref().map(convert::to_wire),
            annotations,
        };
        call!(self, update, Some(self.config.deadlines.runtime), request)
    }

    async fn stats(&self) -> Result<Option<Any>> {
        let request = v2::StatsRequest { id: self.id.clone() };
        let answer = call!(self, stats, Some(self.config.deadlines.stats), request)?;
        Ok(answer.stats.map(convert::from_wire))
    }
}
