//! A process of a container: its init or an exec.

use std::time::{Duration, SystemTime};

use gantry_api::containerd::services::tasks::v1 as wire;
use gantry_api::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_api::containerd::v1::types;
use gantry_errdefs::{Error, Result};

use crate::client::{Client, service};
use crate::convert::{is_disconnected, required, status, time};
use crate::io::{Stdio, Streams};

/// Exit code of a process whose real one can't be known, for instance because the connection to
/// the daemon broke while waiting.
pub const UNKNOWN_EXIT: u32 = 255;

/// How long a process that was killed is given before it is killed again.
const KILL_AGAIN_INTERVAL: Duration = Duration::from_secs(1);

/// SIGKILL.
const SIGKILL: u32 = 9;

/// A process: the task's own, or an exec within it.
#[derive(Clone, Debug)]
pub struct Process {
    pub(crate) client: Client,
    pub(crate) container_id: String,
    /// Empty for the task's own process.
    pub(crate) exec_id: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code; 128 + signal for a process that was killed.
    pub code: u32,
    /// When.
    pub exited_at: SystemTime,
}

/// The state of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessStatus {
    /// The shim does not answer.
    Unknown,
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Stopped,
    /// Frozen.
    Paused,
    /// Being frozen.
    Pausing,
}

/// What the daemon tells of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Id of the container or the exec.
    pub id: String,
    /// Pid on the host; 0 before it is there.
    pub pid: u32,
    /// State.
    pub status: ProcessStatus,
    /// Where its input, output and errors go; for attaching.
    pub stdio: Stdio,
    /// How it ended, once stopped.
    pub exit: Option<ExitStatus>,
}

/// How far a signal reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KillOptions {
    /// Every process of the container, not only this one.
    pub all: bool,
}

impl ProcessStatus {
    /// The name, as command lines show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Created => "CREATED",
            Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
            Self::Paused => "PAUSED",
            Self::Pausing => "PAUSING",
        }
    }
}

impl Process {
    /// Id of the container.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Id of the exec; empty for the container's own process.
    pub fn exec_id(&self) -> &str {
        &self.exec_id
    }

    /// Starts the process; returns its pid.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for an exec after the container's end; Unknown with the
    /// runtime's text when it can't be run.
    pub async fn start(&self) -> Result<u32> {
        let request = wire::StartRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        let answer = service!(self.client, TasksClient)
            .start(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.pid)
    }

    /// Waits for the end; at once when it is over. Many may wait. Dropping the future ends
    /// nothing but the waiting. When the daemon goes away meanwhile, waits for it to come back.
    ///
    /// # Errors
    /// NotFound; Unavailable when the daemon stays away for longer than the client's patience.
    pub async fn wait(&self) -> Result<ExitStatus> {
        loop {
            let failure = match self.wait_once().await {
                Err(e) if is_disconnected(&e) => e,
                // A daemon that stops ends its calls; nobody else cancels this one.
                Err(e) if e.is_canceled() => Error::unavailable(e.message().to_owned()),
                other => return other,
            };
            self.client.come_back().await.map_err(|_| failure)?;
        }
    }

    async fn wait_once(&self) -> Result<ExitStatus> {
        let request = wire::WaitRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        let answer = service!(self.client, TasksClient)
            .wait(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(ExitStatus { code: answer.exit_status, exited_at: time(answer.exited_at) })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// NotFound when the process is over or not there.
    pub async fn kill(&self, signal: u32, options: KillOptions) -> Result<()> {
        let request = wire::KillRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            signal,
            all: options.all,
        };
        service!(self.client, TasksClient)
            .kill(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Removes the process, which must be over; returns how it ended.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while it runs, or was made and never started (an exec in that
    /// state may be removed).
    pub async fn delete(&self) -> Result<ExitStatus> {
        let status = self.state().await?.status;
        let deletable = match status {
            ProcessStatus::Stopped | ProcessStatus::Unknown => true,
            ProcessStatus::Created => !self.exec_id.is_empty(),
            _ => false,
        };
        if !deletable {
            let what = if self.exec_id.is_empty() { "task" } else { "process" };
            let status = status.as_str().to_lowercase();
            let why = format!("{what} must be stopped before deletion: {status}");
            return Err(Error::failed_precondition(why));
        }
        self.remove().await
    }

    /// Removes the process, whatever the daemon makes of its state.
    pub(crate) async fn remove(&self) -> Result<ExitStatus> {
        let mut service = service!(self.client, TasksClient);
        let answer = if self.exec_id.is_empty() {
            let container_id = self.container_id.clone();
            service.delete(self.client.request(wire::DeleteTaskRequest { container_id })).await
        } else {
            let request = wire::DeleteProcessRequest {
                container_id: self.container_id.clone(),
                exec_id: self.exec_id.clone(),
            };
            service.delete_process(self.client.request(request)).await
        };
        let answer = answer.map_err(status)?.into_inner();
        Ok(ExitStatus { code: answer.exit_status, exited_at: time(answer.exited_at) })
    }

    /// Kills the process if it runs, waits for its end and removes it.
    ///
    /// # Errors
    /// NotFound when there is none.
    pub async fn delete_with_kill(&self) -> Result<ExitStatus> {
        let all = self.exec_id.is_empty();
        let mut ended = std::pin::pin!(self.wait());
        loop {
            match self.kill(SIGKILL, KillOptions { all }).await {
                Err(e) if !e.is_not_found() && !e.is_failed_precondition() => return Err(e),
                _ => {}
            }
            match self.state().await?.status {
                ProcessStatus::Stopped | ProcessStatus::Unknown => return self.remove().await,
                // One that never ran has no end to wait for, unless the signal gave it one.
                ProcessStatus::Created => match self.remove().await {
                    Err(e) if !e.is_not_found() => {}
                    other => return other,
                },
                _ => {}
            }
            // One that was just being started may have had nothing yet to get the signal.
            if let Ok(exit) = tokio::time::timeout(KILL_AGAIN_INTERVAL, &mut ended).await {
                exit?;
                return self.remove().await;
            }
        }
    }

    /// Opens the client's ends of the process' FIFOs, as whoever made it did: to read on where
    /// another client stopped. Of a process that is over, what its shim still holds is read, and
    /// then the end: open the streams before the start to miss nothing.
    ///
    /// # Errors
    /// NotFound when the process or a FIFO is gone.
    pub async fn attach(&self) -> Result<Streams> {
        let streams = self.state().await?.stdio.open()?;
        let now = self.state().await?;
        if now.status == ProcessStatus::Stopped {
            now.stdio.end_output();
        }
        Ok(streams)
    }

    /// The state.
    ///
    /// # Errors
    /// NotFound.
    pub async fn state(&self) -> Result<ProcessState> {
        let request = wire::GetRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        let answer = service!(self.client, TasksClient)
            .get(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(state(required(answer.process, "the process")?))
    }

    /// Sets the size of the terminal, in characters. Without a terminal nothing happens.
    ///
    /// # Errors
    /// NotFound.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        let request = wire::ResizePtyRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            width,
            height,
        };
        service!(self.client, TasksClient)
            .resize_pty(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Closes the input, so that the process reads its end.
    ///
    /// # Errors
    /// NotFound.
    pub async fn close_stdin(&self) -> Result<()> {
        let request = wire::CloseIoRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            stdin: true,
        };
        service!(self.client, TasksClient)
            .close_io(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }
}

pub(crate) fn state(process: types::Process) -> ProcessState {
    let state = match process.status() {
        types::Status::Unknown => ProcessStatus::Unknown,
        types::Status::Created => ProcessStatus::Created,
        types::Status::Running => ProcessStatus::Running,
        types::Status::Stopped => ProcessStatus::Stopped,
        types::Status::Paused => ProcessStatus::Paused,
        types::Status::Pausing => ProcessStatus::Pausing,
    };
    let exit = (state == ProcessStatus::Stopped)
        .then(|| ExitStatus { code: process.exit_status, exited_at: time(process.exited_at) });
    ProcessState {
        id: process.id,
        pid: process.pid,
        status: state,
        stdio: Stdio {
            stdin: process.stdin,
            stdout: process.stdout,
            stderr: process.stderr,
            terminal: process.terminal,
        },
        exit,
    }
}
