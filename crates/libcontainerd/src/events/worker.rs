//! One container's events: what was told already, what is new, and the call of the engine.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_client::{
    Client, EventData, ExitStatus, ProcessState, ProcessStatus, TaskMetrics, UNKNOWN_EXIT, time_of,
};
use gantry_errdefs::{Error, Result};
use tokio::sync::mpsc;

use super::registry::{Known, Registry};
use crate::types::{Backend, EventInfo, EventType};

/// Exit code of a process that SIGKILL ended, as the kernel does when memory runs out.
const KILLED: u32 = 128 + 9;

/// How long a shim may take to say whether memory had run out, before an exit is told.
const OOM_LOOK_MAX: Duration = Duration::from_secs(2);

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Told {
    /// Something happened.
    Event(Box<EventData>),
    /// Events may have been missed.
    LookAtState,
}

/// Tells one container's events to the engine.
pub(super) struct Worker {
    container: String,
    client: Client,
    backend: Arc<dyn Backend>,
    registry: Registry,
    task: Task,
}

/// What the engine was told of the container's task.
#[derive(Debug, Default)]
struct Task {
    /// Pid of its own process; 0 before anything is known.
    pid: u32,
    created: bool,
    started: bool,
    exited: bool,
    paused: bool,
    oom: bool,
    execs: HashMap<String, Exec>,
}

/// What the engine was told of an exec.
#[derive(Debug, Default)]
struct Exec {
    started: bool,
    exited: bool,
}

/// Whether a process id in an event is that of the container's own process.
pub(super) fn is_init(container: &str, id: &str) -> bool {
    id.is_empty() || id == container
}

impl Worker {
    pub(super) fn new(
        container: String,
        client: Client,
        backend: Arc<dyn Backend>,
        registry: Registry,
    ) -> Self {
        Self { container, client, backend, registry, task: Task::default() }
    }

    /// Works until the queue is closed.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Told>) {
        while let Some(told) = queue.recv().await {
            self.learn();
            match told {
                Told::Event(data) => self.event(*data).await,
                Told::LookAtState => self.look_at_state().await,
            }
        }
    }

    /// Takes over what this client found of the task before the first event of it.
    fn learn(&mut self) {
        let known = self.registry.get(&self.container);
        if self.task.pid == 0 && known.told {
            self.task = Task { pid: known.pid, created: true, started: true, ..Task::default() };
        }
    }

    async fn event(&mut self, data: EventData) {
        match data {
            EventData::TaskCreate(e) => self.created(e.pid).await,
            EventData::TaskStart(e) => self.started(e.pid).await,
            EventData::TaskExit(e) => {
                let exit = exit_of(e.exit_status, e.exited_at.as_ref());
                if is_init(&e.container_id, &e.id) {
                    self.exited(e.pid, exit, None).await;
                } else {
                    self.exec_exited(&e.id, e.pid, exit, None).await;
                }
            }
            EventData::TaskDelete(e) => {
                let exit = exit_of(e.exit_status, e.exited_at.as_ref());
                if is_init(&e.container_id, &e.id) {
                    self.deleted(e.pid, exit).await;
                } else {
                    self.exec_exited(&e.id, e.pid, exit, None).await;
                    self.task.execs.remove(&e.id);
                }
            }
            EventData::TaskExecAdded(e) => self.exec_added(&e.exec_id).await,
            EventData::TaskExecStarted(e) => self.exec_started(&e.exec_id, e.pid).await,
            EventData::TaskOom(_) => self.oom().await,
            EventData::TaskPaused(_) => self.paused(true).await,
            EventData::TaskResumed(_) => self.paused(false).await,
            _ => {}
        }
    }

    /// A task of this pid begins; what is left to tell of the one before comes first.
    async fn begin(&mut self, pid: u32) {
        if self.task.pid == pid || pid == 0 {
            return;
        }
        if self.task.pid != 0 && !self.task.exited {
            self.exit_unknown().await;
        }
        self.task = Task { pid, ..Task::default() };
    }

    async fn created(&mut self, pid: u32) {
        self.begin(pid).await;
        if !std::mem::replace(&mut self.task.created, true) {
            self.tell(EventType::Create, self.info(pid)).await;
        }
    }

    async fn started(&mut self, pid: u32) {
        self.begin(pid).await;
        if !std::mem::replace(&mut self.task.started, true) {
            self.tell(EventType::Start, self.info(pid)).await;
        }
    }

    async fn exited(&mut self, pid: u32, exit: ExitStatus, error: Option<Error>) {
        self.begin(pid).await;
        self.tell_exit(exit, error).await;
    }

    async fn tell_exit(&mut self, exit: ExitStatus, error: Option<Error>) {
        if self.task.exited {
            return;
        }
        if exit.code == KILLED && !self.task.oom && self.memory_ran_out().await {
            self.oom().await;
        }
        self.task.exited = true;
        let info = EventInfo {
            exit_code: exit.code,
            exited_at: known_time(exit.exited_at),
            error: error.map(Arc::new),
            ..self.info(self.task.pid)
        };
        self.tell(EventType::Exit, info).await;
    }

    /// The task is gone: if its exit was missed, this is the last word on it.
    async fn deleted(&mut self, pid: u32, exit: ExitStatus) {
        // A task that never ran has no exit to tell.
        let ran = self.task.started || exit.exited_at != SystemTime::UNIX_EPOCH;
        if !self.task.exited && ran && (self.task.pid == pid || self.task.pid == 0) {
            self.exited(pid, exit, None).await;
        }
        self.registry.forget_task(&self.container, pid);
        self.task = Task::default();
    }

    async fn exec_added(&mut self, exec: &str) {
        if !self.task.execs.contains_key(exec) {
            self.task.execs.insert(exec.to_owned(), Exec::default());
            let info = EventInfo { process_id: exec.to_owned(), ..self.info(0) };
            self.tell(EventType::ExecAdded, info).await;
        }
    }

    async fn exec_started(&mut self, exec: &str, pid: u32) {
        let known = self.task.execs.entry(exec.to_owned()).or_default();
        if !std::mem::replace(&mut known.started, true) {
            let info = EventInfo { process_id: exec.to_owned(), ..self.info(pid) };
            self.tell(EventType::ExecStarted, info).await;
        }
    }

    async fn exec_exited(&mut self, exec: &str, pid: u32, exit: ExitStatus, error: Option<Error>) {
        let known = self.task.execs.entry(exec.to_owned()).or_default();
        if std::mem::replace(&mut known.exited, true) {
            return;
        }
        self.registry.forget_exec(&self.container, exec);
        let info = EventInfo {
            process_id: exec.to_owned(),
            exit_code: exit.code,
            exited_at: known_time(exit.exited_at),
            error: error.map(Arc::new),
            ..self.info(pid)
        };
        self.tell(EventType::Exit, info).await;
    }

    async fn oom(&mut self) {
        // After the exit it is no news: the exit said so.
        if self.task.exited {
            return;
        }
        self.task.oom = true;
        self.tell(EventType::Oom, self.info(0)).await;
    }

    async fn paused(&mut self, paused: bool) {
        if std::mem::replace(&mut self.task.paused, paused) != paused {
            let event = if paused { EventType::Paused } else { EventType::Resumed };
            self.tell(event, self.info(0)).await;
        }
    }

    /// Tells what the state says and the engine was not told.
    async fn look_at_state(&mut self) {
        let known = self.registry.get(&self.container);
        let tasks = self.client.tasks();
        match tasks.get(&self.container).await {
            Ok(state) => {
                self.begin(state.pid).await;
                self.look_at_execs(&known).await;
                self.look_at_task(&state).await;
            }
            Err(e) if e.is_not_found() => self.task_is_gone(&known).await,
            Err(e) => {
                tracing::warn!(container = self.container, error = %e, "state not known");
            }
        }
    }

    async fn look_at_task(&mut self, state: &ProcessState) {
        self.created(state.pid).await;
        if state.status == ProcessStatus::Created {
            return;
        }
        self.started(state.pid).await;
        match (state.status, &state.exit) {
            (ProcessStatus::Paused, _) => self.paused(true).await,
            (ProcessStatus::Running, _) => self.paused(false).await,
            (_, Some(exit)) => self.exited(state.pid, *exit, None).await,
            _ => {}
        }
    }

    async fn look_at_execs(&mut self, known: &Known) {
        let mut execs: Vec<String> = known.execs.keys().cloned().collect();
        execs.extend(self.task.execs.iter().filter(|(_, e)| !e.exited).map(|(id, _)| id.clone()));
        execs.sort_unstable();
        execs.dedup();
        for exec in execs {
            let process = self.client.tasks().process(&self.container, &exec);
            match process.state().await {
                Ok(state) => {
                    self.exec_added(&exec).await;
                    if state.status == ProcessStatus::Created {
                        continue;
                    }
                    self.exec_started(&exec, state.pid).await;
                    if let Some(exit) = state.exit {
                        self.exec_exited(&exec, state.pid, exit, None).await;
                    }
                }
                Err(e) if e.is_not_found() => {
                    let (exit, why) = end(known.execs.get(&exec).copied().flatten());
                    self.exec_exited(&exec, 0, exit, why).await;
                }
                Err(e) => tracing::warn!(exec, error = %e, "state not known"),
            }
        }
    }

    async fn task_is_gone(&mut self, known: &Known) {
        let pid = if self.task.pid == 0 { known.pid } else { self.task.pid };
        if pid == 0 || self.task.exited {
            self.registry.forget_task(&self.container, pid);
            return;
        }
        self.begin(pid).await;
        let unfinished = self.task.execs.iter().filter(|(_, e)| !e.exited);
        let unfinished: Vec<String> = unfinished.map(|(id, _)| id.clone()).collect();
        for exec in unfinished {
            let (exit, why) = end(known.execs.get(&exec).copied().flatten());
            self.exec_exited(&exec, 0, exit, why).await;
        }
        let (exit, why) = end(known.exit);
        self.exited(pid, exit, why).await;
        self.registry.forget_task(&self.container, pid);
    }

    async fn exit_unknown(&mut self) {
        let known = self.registry.get(&self.container);
        let (exit, why) = end(known.exit.filter(|_| known.pid == self.task.pid));
        self.tell_exit(exit, why).await;
    }

    /// Whether the cgroup of a process that was killed says that memory had run out: shims tell
    /// the exit and the lack of memory on different ways, in either order.
    async fn memory_ran_out(&self) -> bool {
        let filters = [format!("id=={}", self.container)];
        let tasks = self.client.with_timeout(OOM_LOOK_MAX).tasks();
        let Ok(Ok(found)) = tokio::time::timeout(OOM_LOOK_MAX, tasks.metrics(&filters)).await
        else {
            return false;
        };
        found.iter().any(|metrics| match &metrics.data {
            TaskMetrics::V1(v1) => {
                v1.memory_oom_control.as_ref().is_some_and(|oom| oom.oom_kill > 0)
            }
            TaskMetrics::V2(v2) => v2.memory_events.as_ref().is_some_and(|e| e.oom_kill > 0),
            TaskMetrics::Other(_) => false,
        })
    }

    fn info(&self, pid: u32) -> EventInfo {
        EventInfo {
            container_id: self.container.clone(),
            process_id: self.container.clone(),
            pid,
            oom_killed: self.task.oom,
            ..EventInfo::default()
        }
    }

    async fn tell(&self, event: EventType, info: EventInfo) {
        let told: Result<()> = self.backend.process_event(&self.container, event, info).await;
        if let Err(e) = told {
            tracing::error!(container = self.container, %event, error = %e, "by the engine");
        }
    }
}

/// The exit of a process that is gone, as far as it is known.
fn end(exit: Option<ExitStatus>) -> (ExitStatus, Option<Error>) {
    match exit {
        Some(exit) => (exit, None),
        None => {
            let exit = ExitStatus { code: UNKNOWN_EXIT, exited_at: SystemTime::now() };
            (exit, Some(Error::not_found("the process and its exit code")))
        }
    }
}

fn exit_of(code: u32, at: Option<&prost_types::Timestamp>) -> ExitStatus {
    ExitStatus { code, exited_at: at.map_or(SystemTime::UNIX_EPOCH, time_of) }
}

fn known_time(time: SystemTime) -> Option<SystemTime> {
    (time != SystemTime::UNIX_EPOCH).then_some(time)
}
