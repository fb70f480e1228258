//! Start, Exec, Delete, and exits.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::containerd::events::{
    TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskStart,
};
use gantry_api::containerd::task::v3 as api;
use gantry_errdefs::{Error, Result};
use rustix::process::Signal;

use super::create::unmount_rootfs;
use super::{Shim, wrong_stage};
use crate::cgroup::{LOOKS, OomWatch};
use crate::clock;
use crate::container::Container;
use crate::engine::Exec;
use crate::log::warning;
use crate::phase::Phase;
use crate::process::{Process, Stage};
use crate::reaper::{Exit, Exited};
use crate::state::ExitRecord;
use crate::stdio::{self, DRAIN_EXEC_DEADLINE, DRAIN_INIT_DEADLINE, Streams};

/// The init's exit is told after those of its execs; a process that cannot die (state D) holds it
/// up no longer than this.
const EXECS_END_DEADLINE: Duration = Duration::from_secs(10);
/// A killed init is gone by then, unless the kernel cannot end it.
pub(crate) const KILLED_DEADLINE: Duration = Duration::from_secs(10);
/// A start of an init that is dead already gets this long to find out.
const DEAD_START_DEADLINE: Duration = Duration::from_secs(3);
/// What "unknown" is as an exit code, for processes that never ran.
const STATUS_UNKNOWN: u32 = 255;

impl Shim {
    /// Starts the init or an exec.
    pub(super) async fn start_process(&self, id: &str, exec_id: &str) -> Result<u32> {
        let (container, process) = self.process(id, exec_id)?;
        let life = process.life.lock().await;
        match process.stage() {
            Stage::Created => {}
            stage => return Err(wrong_stage("start", stage, "process")),
        }
        if exec_id.is_empty() {
            self.start_init(&container).await?;
        } else {
            self.start_exec(&container, &process).await?;
        }
        drop(life);
        Ok(process.pid())
    }

    async fn start_init(&self, container: &Arc<Container>) -> Result<()> {
        let init = &container.init;
        let restored = match container.settings.restore {
            Some(_) => Some(self.launch_init(container).await?),
            None => {
                let _phase = Phase::begin("runtime-start");
                init.io().start_input();
                release_init(container).await?;
                None
            }
        };
        init.advance(Stage::Created, Stage::Running);
        let event = TaskStart { container_id: container.id.clone(), pid: init.pid() };
        self.events.publish("/tasks/start", &event);
        if let Some(exited) = restored {
            self.follow_init(container, exited);
        }
        Ok(())
    }

    /// Registers an exec.
    pub(super) fn add_exec(&self, request: api::ExecProcessRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        if request.exec_id.is_empty() {
            return Err(Error::invalid_argument("exec id is empty"));
        }
        match container.init.stage() {
            Stage::Created | Stage::Running => {}
            stage @ (Stage::Pausing | Stage::Paused | Stage::Stopped | Stage::Deleted) => {
                let word = stage.word();
                return Err(Error::unknown(format!("cannot exec in a {word} state")));
            }
        }
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.map(|any| any.value).unwrap_or_default();
        container.add_exec(Process::new(request.exec_id.clone(), streams, spec))?;
        let event = TaskExecAdded { container_id: request.id, exec_id: request.exec_id };
        self.events.publish("/tasks/exec-added", &event);
        Ok(())
    }

    async fn start_exec(&self, container: &Arc<Container>, process: &Arc<Process>) -> Result<()> {
        if container.init.stage() == Stage::Stopped {
            let text = format!("container {} init process is not running", container.id);
            return Err(Error::failed_precondition(text));
        }
        match self.launch_exec(container, process).await {
            Ok(exited) => {
                process.advance(Stage::Created, Stage::Running);
                let event = TaskExecStarted {
                    container_id: container.id.clone(),
                    exec_id: process.exec_id.clone(),
                    pid: process.pid(),
                };
                self.events.publish("/tasks/exec-started", &event);
                self.follow_exec(container, process, exited);
                Ok(())
            }
            Err(err) => {
                // Whoever waits for it learns that it will not come.
                process.stop(Exit { status: STATUS_UNKNOWN, at: std::time::SystemTime::now() });
                Err(err)
            }
        }
    }

    async fn launch_exec(&self, container: &Container, process: &Process) -> Result<Exited> {
        let context = self.stdio_context(container);
        let (child, opened) = stdio::open(&process.streams, &context).await?;
        let entering = Phase::begin("exec");
        let spawned = container
            .engine
            .exec(Exec {
                id: &container.id,
                exec_id: &process.exec_id,
                bundle: &container.bundle,
                process: &process.spec,
                init: container.init.pidfd(),
                stdio: child,
                console: opened.console(),
            })
            .await?;
        drop(entering);
        let io = opened.attach()?;
        Ok(process.spawned(spawned, io))
    }

    /// Deletes the init, and with it the container, or an exec.
    pub(super) async fn delete_process(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<api::DeleteResponse> {
        let (container, process) = self.process(id, exec_id)?;
        if exec_id.is_empty() && process.stage() == Stage::Created {
            self.end_created(&process).await;
        }
        let life = process.life.lock().await;
        match process.stage() {
            Stage::Stopped | Stage::Created => {}
            Stage::Deleted => return Err(Error::not_found("process already deleted")),
            stage => return Err(wrong_stage("delete", stage, "process")),
        }
        if exec_id.is_empty() {
            self.delete_init(&container).await?;
        } else {
            process.io().close(DRAIN_EXEC_DEADLINE).await;
            container.remove_exec(exec_id);
            // Absent when it never ran.
            let _ = std::fs::remove_file(ExitRecord::path(&container.bundle, exec_id));
        }
        let exit = process.exit();
        process.deleted();
        drop(life);
        Ok(api::DeleteResponse {
            pid: process.pid(),
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| clock::timestamp(exit.at)),
        })
    }

    /// Kills an init that was never started, so that its end is told before its deletion.
    async fn end_created(&self, init: &Process) {
        if init.signal(Signal::KILL).is_ok()
            && tokio::time::timeout(KILLED_DEADLINE, init.wait()).await.is_err()
        {
            warning!("pid {}: killed, and still there", init.pid());
        }
    }

    async fn delete_init(&self, container: &Arc<Container>) -> Result<()> {
        let init = &container.init;
        container.forget_oom();
        let never_ran = init.pid() == 0;
        let removing = Phase::begin("runtime-delete");
        let remove = async {
            if never_ran { Ok(()) } else { container.engine.delete(&container.id, false).await }
        };
        let io = init.io();
        let (removed, ()) = tokio::join!(remove, io.close(DRAIN_INIT_DEADLINE));
        removed?;
        drop(removing);
        for exec in container.execs_now() {
            exec.io().close(Duration::ZERO).await;
            exec.deleted();
        }
        if container.settings.mounted {
            let _phase = Phase::begin("unmount");
            unmount_rootfs(&container.bundle).await;
        }
        self.remove(&container.id);
        let exit = init.exit();
        let event = TaskDelete {
            container_id: container.id.clone(),
            pid: init.pid(),
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| clock::timestamp(exit.at)),
            id: String::new(),
        };
        self.events.publish("/tasks/delete", &event);
        Ok(())
    }

    /// Deals with the init's exit when it comes, and with kills for memory until then.
    pub(super) fn follow_init(&self, container: &Arc<Container>, exited: Exited) {
        let Some(shim) = self.myself() else { return };
        if let Some(oom) = container.oom() {
            let (shim, watched) = (shim.clone(), container.clone());
            container.set_oom_task(tokio::spawn(async move {
                while oom.stirs().await {
                    shim.tell_of_oom(&watched, &oom).await;
                }
            }));
        }
        let container = container.clone();
        tokio::spawn(async move {
            // The reaper lives as long as the process.
            let Ok(exit) = exited.await else { return };
            let _ending = shim.endings.begin();
            container.init.gone.notify_one();
            if container.settings.kill_all
                && let Err(err) = container.signal_all(9).await
                && !err.is_not_found()
            {
                warning!("container {}: {err}", container.id);
            }
            if tokio::time::timeout(EXECS_END_DEADLINE, execs_end(&container)).await.is_err() {
                warning!("container {}: a process does not end", container.id);
            }
            shim.ended(&container, &container.init.clone(), exit).await;
        });
    }

    /// Reports a kill, if that is what the kernel means.
    async fn tell_of_oom(&self, container: &Container, oom: &OomWatch) {
        for pause in LOOKS {
            tokio::time::sleep(pause).await;
            // Neither between a start and its event, nor between an exit's last look and its event.
            let _life = container.init.life.lock().await;
            if oom.look() {
                let event = TaskOom { container_id: container.id.clone() };
                return self.events.publish("/tasks/oom", &event);
            }
        }
    }

    pub(super) fn follow_exec(
        &self,
        container: &Arc<Container>,
        process: &Arc<Process>,
        exited: Exited,
    ) {
        let Some(shim) = self.myself() else { return };
        let (container, process) = (container.clone(), process.clone());
        tokio::spawn(async move {
            if let Ok(exit) = exited.await {
                let _ending = shim.endings.begin();
                shim.ended(&container, &process, exit).await;
            }
        });
    }

    /// Makes an exit known: first on disk, then to the daemon, then to whoever waits.
    async fn ended(&self, container: &Container, process: &Process, exit: Exit) {
        let _life = process.life.lock().await;
        if container.oom().is_some_and(|oom| oom.news()) {
            let event = TaskOom { container_id: container.id.clone() };
            self.events.publish("/tasks/oom", &event);
        }
        let recording = Phase::begin("exit-record");
        let record = ExitRecord::new(&container.id, &process.exec_id, process.pid(), exit);
        if let Err(err) = record.save(&container.bundle) {
            warning!("exit record: {err}");
        }
        drop(recording);
        let id = if process.exec_id.is_empty() { &container.id } else { &process.exec_id };
        let event = TaskExit {
            container_id: container.id.clone(),
            id: id.clone(),
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)),
        };
        self.events.publish("/tasks/exit", &event);
        process.stop(exit);
    }
}

/// Lets the init go. One that died while it waited for that is not waited for in turn, though it
/// may also have run, and ended already, before the engine's call returns.
async fn release_init(container: &Container) -> Result<()> {
    let start = container.engine.start(&container.id);
    tokio::pin!(start);
    tokio::select! {
        biased;
        started = &mut start => return started,
        () = container.init.gone.notified() => {}
    }
    let dead = || Error::unknown("OCI runtime start failed: the container's init has exited");
    tokio::time::timeout(DEAD_START_DEADLINE, start).await.unwrap_or_else(|_| Err(dead()))
}

/// Waits for every exec that runs or is being started.
async fn execs_end(container: &Container) {
    for exec in container.execs_now() {
        let starting = exec.life.lock().await;
        drop(starting);
        if exec.stage() == Stage::Running {
            exec.wait().await;
        }
    }
}
