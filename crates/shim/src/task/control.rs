//! Kill, Pause, Resume, Update, Checkpoint, ResizePty.

use std::path::Path;

use gantry_api::containerd::events::{TaskPaused, TaskResumed};
use gantry_api::containerd::task::v3 as api;
use gantry_errdefs::{Error, Result};

use super::{Shim, wrong_stage};
use crate::checkpoint::Notes;
use crate::fd;
use crate::options;
use crate::process::Stage;

impl Shim {
    pub(super) async fn kill_process(&self, request: &api::KillRequest) -> Result<()> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let stage = process.stage();
        if stage == Stage::Deleted || (stage == Stage::Stopped && !request.all) {
            return Err(Error::not_found("process already finished"));
        }
        let number = request.signal;
        let is_init = request.exec_id.is_empty();
        if is_init && request.all {
            return container.signal_all(number).await;
        }
        match fd::named_signal(number) {
            // A frozen process does not see even SIGKILL; the runtime knows what to do.
            Some(signal) if stage != Stage::Paused => process.signal(signal),
            _ if is_init => container.engine.kill(&container.id, number, false).await,
            Some(signal) => process.signal(signal),
            None => Err(Error::invalid_argument(format!("signal {number}: not for an exec"))),
        }
    }

    pub(super) async fn pause_task(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _changes = container.changes.lock().await;
        let init = &container.init;
        if !init.advance(Stage::Running, Stage::Pausing) {
            return Err(match init.stage() {
                Stage::Created => Error::unknown("cannot pause task in created state"),
                stage => wrong_stage("pause", stage, "container"),
            });
        }
        if let Err(err) = container.engine.pause(id).await {
            init.advance(Stage::Pausing, Stage::Running);
            return Err(err);
        }
        // One that ended meanwhile has had its last event.
        if init.advance(Stage::Pausing, Stage::Paused) {
            self.events.publish("/tasks/paused", &TaskPaused { container_id: id.to_owned() });
        }
        Ok(())
    }

    pub(super) async fn resume_task(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _changes = container.changes.lock().await;
        match container.init.stage() {
            Stage::Paused => {}
            Stage::Created => return Err(Error::unknown("cannot resume task in created state")),
            Stage::Running => return Err(wrong_stage("resume", Stage::Running, "process")),
            stage => return Err(wrong_stage("resume", stage, "container")),
        }
        container.engine.resume(id).await?;
        if container.init.advance(Stage::Paused, Stage::Running) {
            self.events.publish("/tasks/resumed", &TaskResumed { container_id: id.to_owned() });
        }
        Ok(())
    }

    pub(super) async fn update_task(&self, request: &api::UpdateTaskRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        let _changes = container.changes.lock().await;
        let stage = container.init.stage();
        if matches!(stage, Stage::Stopped | Stage::Deleted) {
            return Err(wrong_stage("update", stage, "container"));
        }
        let resources = request.resources.as_ref().map_or(&b"{}"[..], |any| &any.value);
        container.engine.update(&request.id, resources).await
    }

    pub(super) async fn checkpoint_task(&self, request: api::CheckpointTaskRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        let _changes = container.changes.lock().await;
        match container.init.stage() {
            Stage::Running | Stage::Paused => {}
            Stage::Created => {
                return Err(Error::unknown("cannot checkpoint a task in created state"));
            }
            stage => return Err(wrong_stage("checkpoint", stage, "container")),
        }
        let mut call = options::checkpoint(request.path, request.options.as_ref())?;
        let notes = Notes::of(container.init.pid(), &call)?;
        call.config = notes.for_checkpoint(&container.bundle)?;
        container.engine.checkpoint(&request.id, &container.bundle, &call).await?;
        notes.save(Path::new(&call.image))
    }

    pub(super) fn resize_terminal(&self, request: &api::ResizePtyRequest) -> Result<()> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        match process.stage() {
            stage @ (Stage::Stopped | Stage::Deleted) => {
                Err(wrong_stage("resize", stage, "container"))
            }
            _ => process.io().resize(request.width, request.height),
        }
    }
}
