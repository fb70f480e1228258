//! The task service: what daemons ask of a shim.
//!
//! The same messages make `containerd.task.v2.Task` and `containerd.task.v3.Task`, so one
//! implementation answers under both names. One file per group of methods:
//! - [`create`](self): Create, and a container's restore from a checkpoint;
//! - `life`: Start, Delete, Exec, and what happens at an exit;
//! - `control`: Kill, Pause, Resume, Update, Checkpoint, ResizePty, CloseIO;
//! - `query`: State, Pids, Wait, Stats, Connect.
//!
//! Handlers run to their end even when the caller has gone away, so nothing is left half done.

mod carry;
mod control;
mod create;
mod life;
mod query;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use gantry_api::containerd::task::v3 as api;
use gantry_api::containerd::task::v3::task_ttrpc::{Task, TaskServer};
use gantry_errdefs::{Error, Result};
use gantry_ttrpc::{Context, Reply, Service};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::container::Container;
use crate::events::Events;
use crate::process::{Process, Stage};
use crate::reaper::Reaper;
use crate::stdio::Slots;

pub(crate) use life::KILLED_DEADLINE;

/// A shim that is told to go waits this long for its last events to be taken.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// No daemon takes this long between starting a shim and creating a container in it, or between
/// deleting the last container and ending it.
const FORGOTTEN_DEADLINE: Duration = Duration::from_secs(60);

/// With nobody calling for this long, what the last calls have freed is given back.
const REST_DELAY: Duration = Duration::from_secs(1);

/// The signal nothing survives.
const SIGKILL: u32 = 9;

/// Everything a serving shim has.
#[derive(Debug)]
pub(crate) struct Shim {
    /// The daemon's namespace.
    pub namespace: String,
    /// Reaps.
    pub reaper: Arc<Reaper>,
    /// Tells the daemon.
    pub events: Arc<Events>,
    /// For logging programs.
    pub slots: Slots,
    /// Exits that are being dealt with.
    pub endings: Arc<carry::Endings>,
    /// Told when the last container is gone.
    emptied: Notify,
    /// Told when the shim is to end.
    pub stop: Notify,
    /// Where its socket is found.
    pub socket: Option<PathBuf>,
    /// For tasks that outlive the call that starts them.
    this: Weak<Self>,
    containers: Mutex<HashMap<String, Entry>>,
    sandboxed: AtomicBool,
    last_call: Mutex<Instant>,
    /// It was told to end by a daemon.
    told: AtomicBool,
    /// Told with every call.
    busy: Notify,
}

/// A name that is taken by a Create that runs, or a container.
#[derive(Debug)]
enum Entry {
    Creating,
    Ready(Arc<Container>),
}

impl Shim {
    /// A shim with no containers.
    pub(crate) fn new(
        namespace: String,
        reaper: Arc<Reaper>,
        events: Arc<Events>,
        slots: Slots,
        socket: Option<PathBuf>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            namespace,
            reaper,
            events,
            slots,
            endings: Arc::default(),
            socket,
            emptied: Notify::new(),
            stop: Notify::new(),
            this: this.clone(),
            containers: Mutex::default(),
            sandboxed: AtomicBool::new(false),
            last_call: Mutex::new(Instant::now()),
            told: AtomicBool::new(false),
            busy: Notify::new(),
        })
    }

    /// Whether nothing is left that needs this shim: no container, and it is no sandbox.
    pub(crate) fn is_empty(&self) -> bool {
        self.containers().is_empty() && !self.sandboxed.load(Ordering::Relaxed)
    }

    /// Says whether the shim is a sandbox, which lives on without containers.
    pub(crate) fn set_sandboxed(&self, is: bool) {
        self.sandboxed.store(is, Ordering::Relaxed);
    }

    /// Kills every process of every container and waits for the ends of the containers, `patience` at
    /// most; they are reported and deleted as ever.
    pub(crate) async fn kill_containers(&self, patience: Duration) {
        let all: Vec<Arc<Container>> = (self.containers().values())
            .filter_map(|entry| match entry {
                Entry::Ready(container) => Some(container.clone()),
                Entry::Creating => None,
            })
            .collect();
        for container in all.iter().filter(|c| c.init.exit().is_none()) {
            // One that has ended meanwhile is what was wanted.
            if let Err(err) = container.signal_all(SIGKILL).await
                && !err.is_not_found()
            {
                crate::log::warning!("container {}: {err}", container.id);
            }
        }
        // Who asked deletes them next, which takes containers that have ended.
        let ended = async {
            for container in &all {
                container.init.wait().await;
            }
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            crate::log::warning!("containers of the sandbox are killed, and still there");
        }
    }

    /// Resolves when the shim was left behind: it has no container, and nobody has asked it
    /// anything for [`FORGOTTEN_DEADLINE`]. A daemon that was killed between starting a shim and
    /// using it, or between deleting its container and ending it, does not know of it any more.
    pub(crate) async fn forgotten(&self) {
        loop {
            let last = *self.last_call.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = last.elapsed();
            if waited < FORGOTTEN_DEADLINE {
                tokio::time::sleep(FORGOTTEN_DEADLINE - waited).await;
            } else if self.is_empty() {
                return;
            } else {
                // Nothing to look at again before the last container is gone.
                self.emptied.notified().await;
                self.called();
            }
        }
    }

    /// Keeps the process small: gives memory back whenever a burst of calls is over.
    pub(crate) async fn keep_small(&self) {
        loop {
            self.busy.notified().await;
            while tokio::time::timeout(REST_DELAY, self.busy.notified()).await.is_ok() {}
            gantry_sys::memory::trim_heap();
        }
    }

    /// Whether a daemon has ended it, and its socket is gone.
    pub(crate) fn was_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Notes that somebody knows of this shim.
    fn called(&self) {
        self.busy.notify_one();
        *self.last_call.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Forgets a container.
    fn remove(&self, id: &str) {
        let mut containers = self.containers();
        containers.remove(id);
        if containers.is_empty() {
            self.emptied.notify_one();
        }
    }

    fn myself(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.containers().get(id) {
            Some(Entry::Ready(container)) => Ok(container.clone()),
            _ => Err(Error::not_found("container not created")),
        }
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Process>)> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of an operation that a process's stage rules out.
fn wrong_stage(verb: &str, stage: Stage, what: &str) -> Error {
    let word = stage.word();
    Error::unknown(format!("cannot {verb} a {word} {what}"))
}

/// The directory a request names, or an error.
fn bundle_of(request: &api::CreateTaskRequest) -> Result<PathBuf> {
    if request.bundle.starts_with('/') {
        return Ok(PathBuf::from(&request.bundle));
    }
    let bundle = &request.bundle;
    Err(Error::invalid_argument(format!("bundle {bundle:?}: not an absolute path")))
}

/// The service under one of its names.
pub(crate) struct Named {
    name: &'static str,
    shim: Arc<Shim>,
    inner: TaskServer<Shim>,
}

impl Named {
    /// The service under each of its names.
    pub(crate) fn both(shim: &Arc<Shim>) -> [Self; 2] {
        ["containerd.task.v2.Task", "containerd.task.v3.Task"].map(|name| Self {
            name,
            shim: shim.clone(),
            inner: TaskServer::new(shim.clone()),
        })
    }
}

impl Service for Named {
    fn name(&self) -> &'static str {
        self.name
    }

    fn call(&self, method: &str, ctx: Context, payload: prost::bytes::Bytes) -> Reply {
        self.shim.called();
        self.inner.call(method, ctx, payload)
    }
}

impl Task for Shim {
    async fn state(&self, _: Context, r: api::StateRequest) -> Result<api::StateResponse> {
        self.query_state(&r)
    }

    async fn create(
        &self,
        _: Context,
        r: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse> {
        self.create_task(r).await
    }

    async fn start(&self, _: Context, r: api::StartRequest) -> Result<api::StartResponse> {
        let pid = self.start_process(&r.id, &r.exec_id).await?;
        Ok(api::StartResponse { pid })
    }

    async fn delete(&self, _: Context, r: api::DeleteRequest) -> Result<api::DeleteResponse> {
        self.delete_process(&r.id, &r.exec_id).await
    }

    async fn pids(&self, _: Context, r: api::PidsRequest) -> Result<api::PidsResponse> {
        self.query_pids(&r.id).await
    }

    async fn pause(&self, _: Context, r: api::PauseRequest) -> Result<()> {
        self.pause_task(&r.id).await
    }

    async fn resume(&self, _: Context, r: api::ResumeRequest) -> Result<()> {
        self.resume_task(&r.id).await
    }

    async fn checkpoint(&self, _: Context, r: api::CheckpointTaskRequest) -> Result<()> {
        self.checkpoint_task(r).await
    }

    async fn kill(&self, _: Context, r: api::KillRequest) -> Result<()> {
        self.kill_process(&r).await
    }

    async fn exec(&self, _: Context, r: api::ExecProcessRequest) -> Result<()> {
        self.add_exec(r)
    }

    async fn resize_pty(&self, _: Context, r: api::ResizePtyRequest) -> Result<()> {
        self.resize_terminal(&r)
    }

    async fn close_io(&self, _: Context, r: api::CloseIoRequest) -> Result<()> {
        let (_, process) = self.process(&r.id, &r.exec_id)?;
        if r.stdin {
            process.close_stdin();
        }
        Ok(())
    }

    async fn update(&self, _: Context, r: api::UpdateTaskRequest) -> Result<()> {
        self.update_task(&r).await
    }

    async fn wait(&self, ctx: Context, r: api::WaitRequest) -> Result<api::WaitResponse> {
        self.wait_process(&ctx, &r).await
    }

    async fn stats(&self, _: Context, r: api::StatsRequest) -> Result<api::StatsResponse> {
        let stats = self.container(&r.id)?.cgroup()?.stats()?;
        Ok(api::StatsResponse { stats: Some(stats) })
    }

    async fn connect(&self, _: Context, r: api::ConnectRequest) -> Result<api::ConnectResponse> {
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.container(&r.id).map_or(0, |container| container.init.pid()),
            version: crate::VERSION.to_owned(),
        })
    }

    async fn shutdown(&self, _: Context, _: api::ShutdownRequest) -> Result<()> {
        // Ignored while there are containers: the shim is theirs.
        if self.is_empty() {
            // Whoever hears the answer may take this shim's name at once, and must not be told of
            // its last container afterwards.
            self.finish().await;
            if let Some(path) = &self.socket {
                // The daemon may have removed it already.
                let _ = std::fs::remove_file(path);
            }
            self.told.store(true, Ordering::Relaxed);
            self.stop.notify_one();
        }
        Ok(())
    }
}

impl Shim {
    /// Lets the last events go out; afterwards the process may end.
    pub(crate) async fn finish(&self) {
        self.events.flush(FLUSH_DEADLINE).await;
    }
}
