//! One shim as the daemon sees it: a connection and a bundle.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_api::containerd::task::v2::task_ttrpc::{SERVICE as TASK_V2, TaskClient};
use gantry_api::containerd::task::v2::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, ShutdownRequest,
};
use gantry_api::containerd::task::v3::task_ttrpc::SERVICE as TASK_V3;
use gantry_core::Namespace;
use gantry_errdefs::{Error, Result};
use gantry_ttrpc::{Client, Context};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use crate::binary::Binary;
use crate::bootstrap::Bootstrap;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::log::LogReader;
use crate::waits::Waits;
use crate::{Exit, UNKNOWN_EXIT_STATUS};

/// The metadata key under which shims find the namespace.
pub(crate) const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";

/// A task's shim. Several may share one process, each with a connection of its own.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) config: Arc<Config>,
    pub(crate) namespace: Namespace,
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) program: PathBuf,
    pub(crate) sandbox_id: String,
    pub(crate) address: String,
    /// Held while the task is being deleted.
    pub(crate) deleting: tokio::sync::Mutex<()>,
    /// Calls of Wait under way.
    pub(crate) waits: Waits,
    connection: Client,
    /// Cleared when the shim turns out to speak version 2 only.
    speaks_v3: AtomicBool,
    /// The pid that creating the task gave; 0 when the daemon has only found the task.
    created_pid: AtomicU32,
    /// Set while the shim does not answer in time.
    degraded: AtomicBool,
    /// Set once the daemon itself ends the shim: its connection may close now.
    released: AtomicBool,
    /// How the task ended, once cleaning up after a dead shim has found out.
    buried: watch::Sender<Option<Exit>>,
    /// The process, held so that its pid cannot become another's.
    process: Mutex<Option<OwnedFd>>,
    _log: Option<LogReader>,
}

/// Who a shim is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) config: Arc<Config>,
    pub(crate) namespace: Namespace,
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) program: PathBuf,
    pub(crate) sandbox_id: String,
}

impl Shim {
    /// Takes over `connection` to the shim that `bootstrap` tells of.
    pub(crate) fn new(
        who: Identity,
        bootstrap: &Bootstrap,
        connection: Client,
        log: Option<LogReader>,
    ) -> Self {
        Self {
            config: who.config,
            namespace: who.namespace,
            id: who.id,
            bundle: who.bundle,
            program: who.program,
            sandbox_id: who.sandbox_id,
            address: bootstrap.address.clone(),
            deleting: tokio::sync::Mutex::default(),
            waits: Waits::default(),
            connection,
            speaks_v3: AtomicBool::new(bootstrap.version >= 3),
            created_pid: AtomicU32::new(0),
            degraded: AtomicBool::new(false),
            released: AtomicBool::new(false),
            buried: watch::Sender::new(None),
            process: Mutex::default(),
            _log: log,
        }
    }

    /// Who it is, for connecting to it again.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            config: Arc::clone(&self.config),
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            program: self.program.clone(),
            sandbox_id: self.sandbox_id.clone(),
        }
    }

    /// Breaks the connection.
    #[cfg(test)]
    pub(crate) fn cut(&self) {
        self.connection.close();
    }

    /// The connection, for what is asked beside the task service.
    pub(crate) fn connection(&self) -> &Client {
        &self.connection
    }

    /// The task service in the version that the shim speaks.
    pub(crate) fn tasks(&self) -> TaskClient {
        let v3 = self.speaks_v3.load(Ordering::Relaxed);
        TaskClient::named(self.connection.clone(), if v3 { TASK_V3 } else { TASK_V2 })
    }

    /// What goes with a call that may take `timeout`.
    pub(crate) fn context(&self, timeout: Option<Duration>) -> Context {
        let mut context = Context::new();
        context.timeout = timeout;
        context.with(NAMESPACE_KEY, self.namespace.as_str())
    }

    /// Looks at the outcome of a call: notes whether the shim answers, and says in the error of
    /// a dead one whose it is.
    pub(crate) fn answered<T>(&self, result: Result<T>) -> Result<T> {
        let late = result.as_ref().is_err_and(Error::is_deadline_exceeded);
        if late != self.degraded.swap(late, Ordering::Relaxed) {
            if late {
                tracing::warn!(id = self.id, "shim does not answer: task is degraded");
            } else {
                tracing::info!(id = self.id, "shim answers again");
            }
        }
        result.map_err(|err| match self.connection.is_closed() && err.is_unavailable() {
            true => Error::unavailable(format!("task {}: its shim died", self.id)).with_source(err),
            false => err,
        })
    }

    /// Whether the last call went unanswered.
    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    pub(crate) fn set_degraded(&self) {
        self.degraded.store(true, Ordering::Relaxed);
    }

    /// Whether the connection is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.connection.is_closed()
    }

    /// Resolves when the connection is gone.
    pub(crate) async fn died(&self) {
        self.connection.closed().await;
    }

    /// Goes on in version 2 if `err` says that version 3 is not spoken.
    fn downgrade(&self, err: &Error) -> bool {
        err.is_unimplemented() && self.speaks_v3.swap(false, Ordering::Relaxed)
    }

    /// Creates the task and returns its pid.
    pub(crate) async fn create(&self, request: &CreateTaskRequest) -> Result<u32> {
        let ctx = self.context(Some(self.config.deadlines.create));
        let mut result = self.tasks().create(&ctx, request).await;
        if result.as_ref().is_err_and(|e| self.downgrade(e)) {
            result = self.tasks().create(&ctx, request).await;
        }
        let pid = self.answered(result)?.pid;
        self.created_pid.store(pid, Ordering::Release);
        Ok(pid)
    }

    /// The pid that creating the task gave, if it was this daemon that did. A task keeps its pid
    /// for life, and whoever creates one asks at once: a client's stdin may end meanwhile.
    pub(crate) fn created_pid(&self) -> Option<u32> {
        Some(self.created_pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// Asks who the shim is, within `timeout`.
    pub(crate) async fn connect(&self, timeout: Duration) -> Result<ConnectResponse> {
        let request = ConnectRequest { id: self.id.clone() };
        let ctx = self.context(Some(timeout));
        let mut result = self.tasks().connect(&ctx, &request).await;
        if result.as_ref().is_err_and(|e| self.downgrade(e)) {
            result = self.tasks().connect(&ctx, &request).await;
        }
        if let Ok(answer) = &result {
            self.hold_process(answer.shim_pid);
        }
        self.answered(result)
    }

    /// Takes hold of the shim's process.
    pub(crate) fn set_process(&self, process: OwnedFd) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
    }

    /// Keeps hold of the shim's process while it certainly is the one connected to us.
    fn hold_process(&self, pid: u32) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if process.is_some() {
            return;
        }
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        *process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    }

    /// Tells the shim to end, if it has no other task, and lets go of it. One that has no other
    /// task (`alone`) and does not end is killed.
    ///
    /// A shim that has taken its socket away has told all it had to tell; what is left of it is an
    /// exit that nobody has to wait for.
    pub(crate) async fn shut_down(self: &Arc<Self>, alone: bool) {
        self.release();
        let deadline = self.config.deadlines.shutdown;
        let request = ShutdownRequest { id: self.id.clone(), now: false };
        let ctx = self.context(Some(deadline));
        if let Err(err) = self.tasks().shutdown(&ctx, &request).await
            && !self.is_dead()
        {
            tracing::debug!(id = self.id, %err, "shutdown of a shim");
        }
        let gone = alone && self.address.strip_prefix("unix://").is_some_and(is_absent);
        if gone {
            let shim = Arc::clone(self);
            tokio::spawn(async move { shim.see_off(deadline).await });
        } else if alone {
            self.see_off(deadline).await;
        } else {
            self.connection.close();
        }
    }

    /// Waits for the end of a shim that was told to, and kills one that goes on.
    async fn see_off(&self, deadline: Duration) {
        if tokio::time::timeout(deadline, self.died()).await.is_err() {
            tracing::warn!(id = self.id, "shim did not end when told to: killing it");
            self.kill_process();
        }
        self.connection.close();
    }

    /// Lets go of a shim that goes on without this task.
    pub(crate) fn leave(&self) {
        self.release();
        self.connection.close();
    }

    fn kill_process(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = process.as_ref()
            && let Err(err) = pidfd_send_signal(process, Signal::KILL)
        {
            tracing::debug!(id = self.id, %err, "kill of a shim");
        }
    }

    /// From now on the end of the connection is expected.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// Runs the program's `delete` verb for a shim that is gone.
    pub(crate) async fn clean_up(&self) -> Result<Exit> {
        let binary = Binary {
            config: &self.config,
            program: &self.program,
            namespace: &self.namespace,
            id: &self.id,
            bundle: &self.bundle,
        };
        binary.delete().await
    }

    /// Tells everyone who waits how the task of a dead shim ended.
    pub(crate) fn bury(&self, exit: Exit) {
        self.buried.send_replace(Some(exit));
    }

    /// How the task of a dead shim ended, once that is known. Cleaning up has a deadline, and so
    /// has this.
    pub(crate) async fn burial(&self) -> Result<Exit> {
        let mut buried = self.buried.subscribe();
        // Removing the bundle comes on top of the program's own limit.
        let deadline = self.config.deadlines.cleanup * 2;
        let known = tokio::time::timeout(deadline, buried.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(exit)) => Ok(exit.clone().expect("waited for")),
            _ => Err(Error::unavailable(format!("task {}: its shim died", self.id))),
        }
    }

    /// The exit of a task about which nobody knows more.
    pub(crate) fn unknown_exit() -> Exit {
        let exited_at = Some(std::time::SystemTime::now());
        Exit { pid: 0, status: UNKNOWN_EXIT_STATUS, exited_at }
    }
}

/// Whether there is no such file.
fn is_absent(path: &str) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|err| err.kind() == std::io::ErrorKind::NotFound)
}
