//! The daemon's own stores and shims, as a keeper works on them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_core::{Context, Labels, Namespace};
use gantry_errdefs::{Error, Result};
use gantry_metadata::{Container, Db};
use gantry_mount::Mount;
use gantry_runtime::plugin::{Runtime, Task};
use gantry_runtime::{CreateOptions, Io, Status};
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::keeper::World;
use crate::labels::{COUNT, EXPLICITLY_STOPPED, PENDING, Wish};
use crate::monitor::wish_of;
use crate::policy::Seen;

/// A killed task has ended by then, unless the kernel cannot end it.
const KILLED_DEADLINE: Duration = Duration::from_secs(10);
/// The signal nothing survives.
const SIGKILL: u32 = 9;

/// One container of the daemon.
pub(crate) struct Work {
    db: Db,
    runtime: Arc<dyn Runtime>,
    room: Arc<Semaphore>,
    ctx: Context,
    id: String,
}

/// What matters here of a runtime spec.
#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    process: Option<SpecProcess>,
    #[serde(default)]
    linux: Option<SpecLinux>,
}

#[derive(Default, Deserialize)]
struct SpecProcess {
    #[serde(default)]
    terminal: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecLinux {
    #[serde(default)]
    mount_label: String,
}

impl Work {
    pub(crate) fn new(
        db: &Db,
        runtime: &Arc<dyn Runtime>,
        room: &Arc<Semaphore>,
        namespace: &Namespace,
        id: &str,
    ) -> Self {
        Self {
            db: db.clone(),
            runtime: Arc::clone(runtime),
            room: Arc::clone(room),
            ctx: Context::new(namespace.clone()),
            id: id.to_owned(),
        }
    }

    async fn set_labels(&self, labels: Labels) -> Result<()> {
        let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        let mut update = Container::new(&self.id);
        update.labels = labels;
        self.db.containers().update(&self.ctx, update, &paths).await.map(drop)
    }

    /// Removes the task, whatever it does; none is fine.
    async fn remove_task(&self) -> Result<()> {
        let task = match self.runtime.get(&self.ctx.namespace, &self.id).await {
            Err(err) if err.is_not_found() => return Ok(()),
            other => other?,
        };
        // Deleting one that was never started ends it.
        let is_idle = |status| matches!(status, Status::Stopped | Status::Created);
        if !task.state("").await.is_ok_and(|state| is_idle(state.status)) {
            // One that ends by itself meanwhile is what is wanted.
            match task.kill("", SIGKILL, true).await {
                Err(err) if !err.is_not_found() => return Err(err),
                _ => {}
            }
            tokio::time::timeout(KILLED_DEADLINE, task.wait("")).await.unwrap_or_else(|_| {
                Err(Error::deadline_exceeded(format!("task {}: killed, still there", self.id)))
            })?;
        }
        match self.runtime.delete(&self.ctx.namespace, &self.id).await {
            Err(err) if !err.is_not_found() => Err(err),
            _ => Ok(()),
        }
    }

    /// Removes the task and starts it anew; returns the pid.
    async fn replace_task(&self, wish: &Wish) -> Result<u32> {
        self.remove_task().await?;
        let container = self.db.containers().get(&self.ctx, &self.id).await?;
        let task = self.create(container, &wish.log).await?;
        let started = task.start("").await;
        if started.is_err()
            && let Err(err) = self.remove_task().await
        {
            tracing::warn!(id = self.id, %err, "task that did not start");
        }
        started
    }

    async fn rootfs(&self, container: &Container, label: &str) -> Result<Vec<Mount>> {
        if container.snapshot_key.is_empty() {
            return Ok(Vec::new());
        }
        let snapshots = self.db.snapshotter(&container.snapshotter)?;
        let mut mounts = snapshots.mounts(&self.ctx, &container.snapshot_key).await?;
        if !label.is_empty() {
            for mount in &mut mounts {
                mount.options.push(format!("context=\"{label}\""));
            }
        }
        Ok(mounts)
    }

    async fn create(&self, container: Container, log: &str) -> Result<Arc<dyn Task>> {
        let missing = || Error::failed_precondition(format!("container {}: no spec", self.id));
        let any = container.spec.clone().ok_or_else(missing)?;
        let spec: Spec = serde_json::from_slice(&any.value)
            .map_err(|err| Error::invalid_argument(format!("container {}: {err}", self.id)))?;
        let terminal = spec.process.is_some_and(|process| process.terminal);
        let label = spec.linux.map(|linux| linux.mount_label).unwrap_or_default();
        let options = CreateOptions {
            spec: any,
            rootfs: self.rootfs(&container, &label).await?,
            io: Io {
                stdin: String::new(),
                stdout: log.to_owned(),
                stderr: if terminal { String::new() } else { log.to_owned() },
                terminal,
            },
            runtime: container.runtime.name,
            runtime_options: container.runtime.options,
            sandbox_id: container.sandbox_id,
            ..CreateOptions::default()
        };
        self.runtime.create(&self.ctx.namespace, &self.id, options).await
    }
}

#[async_trait]
impl World for Work {
    async fn wish(&self) -> Option<(Wish, SystemTime)> {
        match self.db.containers().get(&self.ctx, &self.id).await {
            Ok(container) => wish_of(&container),
            Err(err) if err.is_not_found() => None,
            Err(err) => {
                tracing::error!(id = self.id, %err, "restart monitor: no record");
                None
            }
        }
    }

    async fn see(&self) -> Seen {
        let state = async {
            let task = self.runtime.get(&self.ctx.namespace, &self.id).await?;
            task.state("").await
        };
        match state.await {
            Ok(state) => match state.status {
                Status::Created => Seen::Created,
                Status::Running | Status::Paused | Status::Pausing => {
                    Seen::Alive { pid: state.pid }
                }
                Status::Stopped => Seen::Ended { status: state.exit_status },
                Status::Unknown => Seen::Unclear,
            },
            Err(err) if err.is_not_found() => Seen::Absent,
            Err(err) => {
                tracing::debug!(id = self.id, %err, "restart monitor: state of a task");
                Seen::Unclear
            }
        }
    }

    async fn start(&self, wish: &Wish) -> Result<u32> {
        let _room = self.room.acquire().await.expect("never closed");
        let count = (COUNT.to_owned(), wish.count.saturating_add(1).to_string());
        let pending = (PENDING.to_owned(), "true".to_owned());
        self.set_labels(Labels::from([count, pending])).await?;
        let started = self.replace_task(wish).await;
        if let Ok(pid) = started {
            tracing::info!(id = self.id, pid, restarts = wish.count + 1, "restarted");
        }
        self.settle().await;
        started
    }

    async fn settle(&self) {
        let none = Labels::from([(PENDING.to_owned(), String::new())]);
        match self.set_labels(none).await {
            Err(err) if !err.is_not_found() => {
                tracing::warn!(id = self.id, %err, "restart stays on record as pending");
            }
            _ => {}
        }
    }

    async fn stop(&self) -> Result<()> {
        let _room = self.room.acquire().await.expect("never closed");
        self.remove_task().await
    }

    async fn begin_anew(&self) -> Result<()> {
        let container = self.db.containers().get(&self.ctx, &self.id).await?;
        let reset = [(COUNT, "0"), (EXPLICITLY_STOPPED, "false"), (PENDING, "")];
        let there = reset.into_iter().filter(|(key, _)| container.labels.contains_key(*key));
        let labels: Labels = there.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        if labels.is_empty() { Ok(()) } else { self.set_labels(labels).await }
    }
}
