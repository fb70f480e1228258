//! Create.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_api::containerd::events::{TaskCreate, TaskIo};
use gantry_api::containerd::task::v3 as api;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::{Mount, UnmountFlags};

use super::{Entry, Shim, bundle_of};
use crate::blocking;
use crate::checkpoint::Notes;
use crate::container::{Container, Settings};
use crate::engine::{Create, Engine, Restore, Runc};
use crate::log::warning;
use crate::options::Options;
use crate::phase::Phase;
use crate::process::Process;
use crate::reaper::Exited;
use crate::spec::Spec;
use crate::stdio::{self, Streams};

impl Shim {
    /// Makes a container; its init waits for Start.
    pub(super) async fn create_task(
        &self,
        request: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse> {
        let id = request.id.clone();
        if id.is_empty() {
            return Err(Error::invalid_argument("container id is empty"));
        }
        {
            let mut containers = self.containers();
            if containers.contains_key(&id) {
                return Err(Error::already_exists(format!("container {id}")));
            }
            containers.insert(id.clone(), Entry::Creating);
        }
        let made = self.make(request).await;
        match made {
            Ok(container) => {
                let pid = container.init.pid();
                self.containers().insert(id, Entry::Ready(container));
                Ok(api::CreateTaskResponse { pid })
            }
            Err(err) => {
                self.remove(&id);
                Err(err)
            }
        }
    }

    async fn make(&self, request: api::CreateTaskRequest) -> Result<Arc<Container>> {
        let bundle = bundle_of(&request)?;
        let options = Options::decode(request.options.as_ref())?;
        options.saved().save(&bundle)?;
        let mounted = {
            let _phase = Phase::begin("mount");
            mount_rootfs(&request, &bundle)?
        };
        let made = self.make_in(&request, &bundle, options, mounted).await;
        if made.is_err() && mounted {
            unmount_rootfs(&bundle).await;
        }
        made
    }

    async fn make_in(
        &self,
        request: &api::CreateTaskRequest,
        bundle: &Path,
        options: Options,
        mounted: bool,
    ) -> Result<Arc<Container>> {
        let spec = Spec::load(bundle)?;
        spec.clamp(bundle)?;
        let streams = Streams {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let engine: Arc<dyn Engine> =
            Arc::new(Runc::new(options.runtime(&self.namespace, bundle), self.reaper.clone()));
        let init = Process::new(String::new(), streams, Vec::new());
        let settings = settings(request, &spec, options, mounted, bundle);
        let restores = settings.restore.is_some();
        let id = request.id.clone();
        let container = Arc::new(Container::new(id, bundle.to_path_buf(), engine, init, settings));
        let life = container.init.life.lock().await;
        let exited = if restores { None } else { Some(self.launch_init(&container).await?) };
        self.events.publish("/tasks/create", &created(request, container.init.pid()));
        if let Some(exited) = exited {
            self.follow_init(&container, exited);
        }
        drop(life);
        Ok(container)
    }

    /// Has the engine make the init, from its program or from a checkpoint.
    pub(super) async fn launch_init(&self, container: &Arc<Container>) -> Result<Exited> {
        let settings = &container.settings;
        let defer_input = settings.restore.is_none();
        let context = stdio::Context { defer_input, ..self.stdio_context(container) };
        let (child, opened) = stdio::open(&container.init.streams, &context).await?;
        let restore = match &settings.restore {
            Some(image) => Some(restore(image, settings, &container.bundle)?),
            None => None,
        };
        let making = Phase::begin("runtime-create");
        let spawned = container
            .engine
            .create(Create {
                id: &container.id,
                bundle: &container.bundle,
                stdio: child,
                console: opened.console(),
                no_pivot: settings.no_pivot,
                no_new_keyring: settings.no_new_keyring,
                restore,
            })
            .await;
        drop(making);
        let spawned = match spawned {
            // A runtime that was killed in the middle has not cleaned up after itself.
            Err(err) if err.is_deadline_exceeded() => {
                discard(container).await;
                return Err(err);
            }
            other => other?,
        };
        match opened.attach() {
            Ok(io) => {
                let exited = container.init.spawned(spawned, io);
                let _phase = Phase::begin("find-cgroup");
                container.find_cgroup();
                Ok(exited)
            }
            Err(err) => {
                // A container without its terminal is of no use to anyone.
                discard(container).await;
                Err(err)
            }
        }
    }

    /// What opening the streams of a process of `container` needs.
    pub(super) fn stdio_context<'a>(&'a self, container: &'a Container) -> stdio::Context<'a> {
        stdio::Context {
            namespace: &self.namespace,
            id: &container.id,
            bundle: &container.bundle,
            uid: container.settings.io_uid,
            gid: container.settings.io_gid,
            hand_over: container.settings.hand_over,
            defer_input: false,
            slots: &self.slots,
            reaper: &self.reaper,
        }
    }
}

fn restore(image: &Path, settings: &Settings, bundle: &Path) -> Result<Restore> {
    let notes = Notes::load(image)?;
    Ok(Restore {
        image: image.to_owned(),
        work: settings.criu_work.clone(),
        config: notes.for_restore(bundle)?,
        open_tcp: notes.open_tcp,
        external_unix_sockets: notes.external_unix_sockets,
        terminal: notes.terminal,
        file_locks: notes.file_locks,
        empty_namespaces: notes.empty_namespaces,
    })
}

/// Removes a container that could not be made whole.
async fn discard(container: &Container) {
    if let Err(err) = container.engine.delete(&container.id, true).await {
        warning!("container {}: {err}", container.id);
    }
}

fn settings(
    request: &api::CreateTaskRequest,
    spec: &Spec,
    options: Options,
    mounted: bool,
    bundle: &Path,
) -> Settings {
    let restore = match (&request.checkpoint, options.criu_image) {
        (path, _) if !path.is_empty() => Some(PathBuf::from(path)),
        (_, path) if !path.is_empty() => Some(PathBuf::from(path)),
        _ => None,
    };
    let work = options.criu_work;
    let owned = (options.io_uid, options.io_gid) != (0, 0);
    Settings {
        io_uid: options.io_uid,
        io_gid: options.io_gid,
        hand_over: !owned && !spec.has_user_namespace() && !spec.is_labelled(),
        kill_all: !spec.owns_pid_namespace(),
        mounted,
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        restore,
        criu_work: if work.is_empty() { bundle.join("work") } else { PathBuf::from(work) },
    }
}

fn created(request: &api::CreateTaskRequest, pid: u32) -> TaskCreate {
    TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: Some(TaskIo {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        }),
        checkpoint: request.checkpoint.clone(),
        pid,
    }
}

/// Mounts what the daemon handed over; says whether there was anything.
fn mount_rootfs(request: &api::CreateTaskRequest, bundle: &Path) -> Result<bool> {
    if request.rootfs.is_empty() {
        return Ok(false);
    }
    let mounts: Vec<Mount> = request
        .rootfs
        .iter()
        .map(|mount| Mount {
            kind: mount.r#type.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        })
        .collect();
    let rootfs = bundle.join("rootfs");
    std::fs::create_dir_all(&rootfs).context(|| rootfs.display().to_string())?;
    gantry_mount::mount_all(&mounts, &rootfs).context(|| "failed to mount rootfs component")?;
    Ok(true)
}

/// Unmounts the root filesystem. On a thread of its own: the kernel may write the whole upper
/// layer out first.
pub(super) async fn unmount_rootfs(bundle: &Path) {
    let rootfs = bundle.join("rootfs");
    let unmount = move || gantry_mount::unmount_recursive(&rootfs, UnmountFlags::default());
    if let Err(err) = blocking::run(unmount).await {
        warning!("unmount: {err}");
    }
}
