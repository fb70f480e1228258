//! Containers.

use std::path::{Path, PathBuf};

use gantry_api::containerd::linux::runc as old;
use gantry_api::containerd::runc::v1 as runc;
use gantry_client::{FifoSet, ProcessState, ProcessStatus, Streams, typeurl};
use gantry_core::Any;
use gantry_errdefs::{Error, Result};

use crate::client::Client;
use crate::process::Process;
use crate::stdio::{Closed, DirectIo};
use crate::task::Task;
use crate::types::{INIT_PROCESS, Restored};

/// A container of the engine's.
#[derive(Clone, Debug)]
pub struct Container {
    client: Client,
    inner: gantry_client::Container,
    bundle: PathBuf,
}

impl Container {
    pub(crate) fn new(client: Client, inner: gantry_client::Container, bundle: PathBuf) -> Self {
        Self { client, inner, bundle }
    }

    /// Id.
    pub fn id(&self) -> &str {
        self.inner.id()
    }

    /// Its directory, with FIFOs and whatever the engine puts there.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The container as the client library has it.
    pub fn record(&self) -> &gantry_client::Container {
        &self.inner
    }

    /// Makes the task: its process exists and does not run before [`Task::start`]. `attach` gets
    /// the engine's ends of its streams first. With `checkpoint`, a directory that
    /// [`Task::create_checkpoint`] filled, the task is restored from it.
    ///
    /// # Errors
    /// AlreadyExists; Unknown with the runtime's text; the error of `attach`.
    pub async fn new_task(
        &self,
        with_stdin: bool,
        checkpoint: Option<&Path>,
        attach: impl FnOnce(DirectIo) -> Result<()>,
    ) -> Result<Task> {
        let spec = self.inner.spec()?;
        let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or_default();
        let init = self.client.daemon().tasks().process(self.id(), "");
        let Opened { fifos, closed, held } =
            open(&self.bundle, INIT_PROCESS, with_stdin, terminal, &init, attach)?;
        let mut builder = self.inner.new_task(fifos.stdio());
        if let Some(options) = self.task_options(checkpoint)? {
            builder = builder.options(options);
        }
        let made = builder.create().await?;
        let pid = made.pid();
        self.client.inner.events.known(self.id(), pid, false);
        fifos.keep();
        let task = Task::new(self.client.clone(), self.bundle.clone(), made, closed);
        // Containerd's shims open the streams of a task that is restored when it is started.
        Ok(if checkpoint.is_some() { task.holding(held) } else { task })
    }

    /// The task, if there is one.
    ///
    /// # Errors
    /// NotFound.
    pub async fn task(&self) -> Result<Task> {
        let found = self.inner.task().await?;
        self.client.inner.events.known(self.id(), found.pid(), true);
        Ok(Task::new(self.client.clone(), self.bundle.clone(), found, Closed::default()))
    }

    /// The task, with its streams given to `attach` again: for an engine that was restarted.
    ///
    /// # Errors
    /// NotFound when there is no task, or its FIFOs are gone; the error of `attach`.
    pub async fn attach_task(&self, attach: impl FnOnce(DirectIo) -> Result<()>) -> Result<Task> {
        let found = self.inner.task().await?;
        let state = found.state().await?;
        let (io, closed) = DirectIo::new(state.stdio.open()?, state.stdio.terminal, &found);
        attach(io)?;
        if !is_over(&state) {
            self.client.inner.events.known(self.id(), found.pid(), true);
        }
        Ok(Task::new(self.client.clone(), self.bundle.clone(), found, closed))
    }

    /// What an engine does with each container after its own restart: takes the streams up again
    /// and learns whether the process lives. The exit of one that does not is no event any more;
    /// `Task::delete` has it.
    ///
    /// # Errors
    /// Those of the daemon; a container without a task is none.
    pub async fn restore(
        &self,
        attach: impl FnOnce(DirectIo) -> Result<()>,
    ) -> Result<(Restored, Option<Task>)> {
        let gone = Restored { alive: false, pid: 0 };
        let found = match self.inner.task().await {
            Err(e) if e.is_not_found() => return Ok((gone, None)),
            other => other?,
        };
        let state = found.state().await?;
        if is_over(&state) {
            let task =
                Task::new(self.client.clone(), self.bundle.clone(), found, Closed::default());
            return Ok((Restored { alive: false, pid: state.pid }, Some(task)));
        }
        let task = self.attach_task(attach).await?;
        Ok((Restored { alive: true, pid: state.pid }, Some(task)))
    }

    /// Removes the container, which must not have a task, and its directory.
    ///
    /// # Errors
    /// FailedPrecondition while there is a task; NotFound.
    pub async fn delete(&self) -> Result<()> {
        let with_snapshot = !self.inner.record().snapshot_key.is_empty();
        self.inner.delete(with_snapshot).await?;
        self.client.inner.events.forget(self.id());
        remove_dir(&self.bundle);
        Ok(())
    }

    /// Removes the container and its task, whatever state they are in.
    ///
    /// # Errors
    /// Those of the daemon; what is gone already is none.
    pub async fn force_delete(&self) -> Result<()> {
        match self.task().await {
            Ok(task) => match task.force_delete().await {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            },
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        match self.delete().await {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }

    /// The options of the task: those of the container's runtime with what the engine wants and
    /// where to restore from.
    fn task_options(&self, checkpoint: Option<&Path>) -> Result<Option<Any>> {
        let engine = &self.client.inner.options;
        let runtime = &self.inner.record().runtime;
        let (io_uid, io_gid) = engine.io_owner;
        let path = checkpoint.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let plain = path.is_empty() && !engine.no_pivot_root && engine.io_owner == (0, 0);
        if plain {
            return Ok(runtime.options.clone());
        }
        let given = match &runtime.options {
            Some(options) => typeurl::unpack::<runc::Options>(options)?,
            None => Some(runc::Options::default()),
        };
        if runtime.name == OLD_RUNTIME {
            return Ok(Some(typeurl::pack(&old::CreateOptions {
                no_pivot_root: engine.no_pivot_root,
                io_uid,
                io_gid,
                criu_image_path: path,
                ..Default::default()
            })));
        }
        match given {
            Some(options) => Ok(Some(typeurl::pack(&runc::Options {
                no_pivot_root: engine.no_pivot_root,
                io_uid,
                io_gid,
                criu_image_path: path,
                ..options
            }))),
            None if path.is_empty() => Ok(runtime.options.clone()),
            None => {
                let why = format!("runtime {}: it does not restore checkpoints", runtime.name);
                Err(Error::unimplemented(why))
            }
        }
    }
}

/// The runtime of containerd 1.x, with task options of its own type.
const OLD_RUNTIME: &str = "io.containerd.runtime.v1.linux";

fn is_over(state: &ProcessState) -> bool {
    matches!(state.status, ProcessStatus::Stopped | ProcessStatus::Unknown)
}

/// Makes a process' FIFOs in the bundle and hands the engine's ends over. FIFOs of an earlier
/// process of that name are replaced.
pub(crate) fn open(
    bundle: &Path,
    name: &str,
    with_stdin: bool,
    terminal: bool,
    process: &gantry_client::Process,
    attach: impl FnOnce(DirectIo) -> Result<()>,
) -> Result<Opened> {
    Process::remove_fifos(bundle, name);
    let fifos = FifoSet::create_in(bundle, name, with_stdin, terminal)?;
    let held = fifos.stdio().open()?;
    let (io, closed) = DirectIo::new(fifos.stdio().open()?, terminal, process);
    attach(io)?;
    Ok(Opened { fifos, closed, held })
}

/// The streams of a process that is to be made.
pub(crate) struct Opened {
    pub(crate) fifos: FifoSet,
    pub(crate) closed: Closed,
    /// Ends that nobody uses, kept until the shim has opened its own: shims of containerd wait
    /// for another end, which an engine that wants no output has closed.
    pub(crate) held: Streams,
}

fn remove_dir(dir: &Path) {
    if let Err(e) = std::fs::remove_dir_all(dir)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), error = %e, "bundle left");
    }
}
