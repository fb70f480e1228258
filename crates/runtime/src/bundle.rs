//! The directory of one task. Everything here blocks.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gantry_core::Namespace;
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_mount::UnmountFlags;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::Exit;
use crate::bootstrap::Bootstrap;

/// The spec, as the shim reads it.
const SPEC_FILE: &str = "config.json";
/// The shim program, for a daemon started later with another PATH.
const SHIM_FILE: &str = "shim-binary-path";
/// What a task is to be restored from, until it has started.
const CHECKPOINT_DIR: &str = "checkpoint";
/// The pod whose shim hosts the task.
const SANDBOX_FILE: &str = "sandbox";

/// What a shim of ours calls its records of exits; others have none.
const EXIT_PREFIX: &str = "exit-";
const EXIT_SUFFIX: &str = ".json";

/// Exit records read of one bundle: as many as a task can have execs that nobody deletes, within
/// reason.
const EXITS_MAX: usize = 1024;

/// A bundle on disk and the directory that it keeps over a reboot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// `<state>/<namespace>/<id>`.
    pub(crate) path: PathBuf,
    /// `<root>/<namespace>/<id>`.
    pub(crate) work: PathBuf,
}

/// Where bundles are.
#[derive(Clone, Debug)]
pub(crate) struct Bundles {
    root: PathBuf,
    state: PathBuf,
}

/// A bundle found on disk.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) namespace: Namespace,
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
}

/// A shim's record of an exit, as far as the daemon cares.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ExitRecord {
    /// The exec; empty for the first process.
    pub(crate) exec_id: String,
    pub(crate) pid: u32,
    exit_status: u32,
    exited_at_s: u64,
    exited_at_ns: u32,
}

impl ExitRecord {
    /// The exit itself.
    pub(crate) fn exit(&self) -> Exit {
        let since = Duration::new(self.exited_at_s, self.exited_at_ns);
        let exited_at = Some(SystemTime::UNIX_EPOCH + since);
        Exit { pid: self.pid, status: self.exit_status, exited_at }
    }
}

/// Annotations whose value names a group of containers that share a shim.
const GROUP_ANNOTATIONS: [&str; 2] =
    ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The part of a spec that decides which shim a container gets.
#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<HashMap<String, IgnoredAny>>,
}

/// The part of a spec that decides who may enter the bundle.
#[derive(Deserialize)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    gid_mappings: Option<Vec<Mapping>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(rename = "containerID")]
    container: u32,
    #[serde(rename = "hostID")]
    host: u32,
    size: u32,
}

impl Bundles {
    pub(crate) fn new(root: PathBuf, state: PathBuf) -> Self {
        Self { root, state }
    }

    pub(crate) fn bundle(&self, namespace: &Namespace, id: &str) -> Bundle {
        Bundle {
            path: self.state.join(namespace.as_str()).join(id),
            work: self.root.join(namespace.as_str()).join(id),
        }
    }

    /// Makes the bundle of a new task; on failure nothing of it is left.
    ///
    /// # Errors
    /// AlreadyExists when there is one, else the class of the I/O error.
    pub(crate) fn create(
        &self,
        namespace: &Namespace,
        id: &str,
        spec: &[u8],
        sandbox: &str,
    ) -> Result<Bundle> {
        let bundle = self.bundle(namespace, id);
        for top in [&self.root, &self.state] {
            let dir = top.join(namespace.as_str());
            make_dirs(&dir, 0o711).context(|| dir.display().to_string())?;
        }
        // Whatever work directory an earlier task of this id left is stale without its bundle.
        remove_tree(&bundle.work)?;
        gantry_failpoint::hit("bundle.create").context(|| bundle.path.display().to_string())?;
        make_dir(&bundle.path, 0o700).map_err(|e| {
            if e.kind() == io::ErrorKind::AlreadyExists {
                return Error::already_exists(format!("bundle {}", bundle.path.display()));
            }
            Error::io(bundle.path.display(), e)
        })?;
        if let Err(err) = bundle.fill(spec, sandbox) {
            return Err(match bundle.delete() {
                Ok(()) => err,
                Err(left) => err.context(format!("{left}; after")),
            });
        }
        Ok(bundle)
    }

    /// Every bundle, after removing what earlier removals left. A directory that cannot be read
    /// is reported and passed over.
    pub(crate) fn scan(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for (name, dir) in entries(&self.state) {
            let Ok(namespace) = Namespace::new(&name) else { continue };
            for (id, path) in entries(&dir) {
                let bundle = self.bundle(&namespace, &id);
                if id.starts_with('.') {
                    let left = Bundle { path, work: bundle.work };
                    report(&left.path, left.remove());
                } else if path.is_dir() {
                    found.push(Found { namespace: namespace.clone(), id, bundle });
                }
            }
        }
        self.remove_stale_work();
        found
    }

    /// Every bundle there is, those being removed included (by their own name).
    pub(crate) fn list(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for (name, dir) in entries(&self.state) {
            let Ok(namespace) = Namespace::new(&name) else { continue };
            for (entry, path) in entries(&dir) {
                let id = entry.strip_prefix('.').unwrap_or(&entry).to_owned();
                let work = self.root.join(namespace.as_str()).join(&id);
                if path.is_dir() {
                    found.push(Found {
                        namespace: namespace.clone(),
                        id,
                        bundle: Bundle { path, work },
                    });
                }
            }
        }
        found
    }

    /// Work directories without a bundle.
    pub(crate) fn stale_work(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for (name, dir) in entries(&self.root) {
            let Ok(namespace) = Namespace::new(&name) else { continue };
            for (id, _) in entries(&dir) {
                let bundle = self.bundle(&namespace, &id);
                if !bundle.path.exists() {
                    found.push(Found { namespace: namespace.clone(), id, bundle });
                }
            }
        }
        found
    }

    /// Namespace and id of the bundle that holds `path`.
    pub(crate) fn owner(&self, path: &Path) -> Option<(Namespace, String)> {
        let mut names = path.strip_prefix(&self.state).ok()?.iter();
        let namespace = Namespace::new(names.next()?.to_str()?).ok()?;
        let id = names.next()?.to_str()?;
        Some((namespace, id.strip_prefix('.').unwrap_or(id).to_owned()))
    }

    /// Removes work directories whose bundle is gone, as after a reboot.
    fn remove_stale_work(&self) {
        for (namespace, dir) in entries(&self.root) {
            for (id, work) in entries(&dir) {
                if !self.state.join(&namespace).join(&id).exists() {
                    report(&work, remove_tree(&work));
                }
            }
        }
    }
}

impl Bundle {
    fn fill(&self, spec: &[u8], sandbox: &str) -> Result<()> {
        let at = |path: &Path| path.display().to_string();
        if let Some(gid) = remapped_root(spec) {
            std::os::unix::fs::chown(&self.path, None, Some(gid)).context(|| at(&self.path))?;
            let mode = std::fs::Permissions::from_mode(0o710);
            std::fs::set_permissions(&self.path, mode).context(|| at(&self.path))?;
        }
        let rootfs = self.rootfs();
        make_dir(&rootfs, 0o711).context(|| at(&rootfs))?;
        make_dir(&self.work, 0o711).context(|| at(&self.work))?;
        let link = self.path.join("work");
        std::os::unix::fs::symlink(&self.work, &link).context(|| at(&link))?;
        self.write(SPEC_FILE, spec)?;
        if !sandbox.is_empty() {
            self.write(SANDBOX_FILE, sandbox.as_bytes())?;
        }
        Ok(())
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let point = match name {
            SHIM_FILE => "bundle.shim-program",
            _ => "bundle.spec",
        };
        gantry_failpoint::hit(point)
            .and_then(|()| std::fs::write(&path, data))
            .context(|| path.display().to_string())?;
        // The umask of whoever started the daemon does not decide who may read a spec.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, mode).context(|| path.display().to_string())
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path.join(name)).ok().map(|t| t.trim().to_owned())
    }

    /// Where the shim mounts the root.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Takes the directory of a checkpoint along; returns where it is.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub(crate) fn take_checkpoint(&self, from: &Path) -> Result<PathBuf> {
        let to = self.work.join(CHECKPOINT_DIR);
        std::fs::rename(from, &to).context(|| from.display().to_string())?;
        Ok(to)
    }

    /// The fifo that the shim logs to.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The shim program that was started here, if one was.
    pub(crate) fn shim_program(&self) -> Option<PathBuf> {
        self.read(SHIM_FILE).filter(|p| !p.is_empty()).map(PathBuf::from)
    }

    /// Remembers the shim program.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub(crate) fn set_shim_program(&self, program: &Path) -> Result<()> {
        self.write(SHIM_FILE, program.as_os_str().as_encoded_bytes())
    }

    /// The pod whose shim hosts the task; empty for none.
    pub(crate) fn sandbox(&self) -> String {
        self.read(SANDBOX_FILE).unwrap_or_default()
    }

    /// Whether a task was created here.
    pub(crate) fn had_task(&self) -> bool {
        // runc's pid file is there once a task has been created.
        self.path.join("init.pid").exists()
    }

    /// How the processes of the task ended that have, as far as the shim keeps records; in the
    /// order of their ends, the first process last.
    pub(crate) fn exits(&self) -> Vec<ExitRecord> {
        let records = entries(&self.path).into_iter().take(EXITS_MAX).filter_map(|(name, path)| {
            name.strip_prefix(EXIT_PREFIX)?.strip_suffix(EXIT_SUFFIX)?;
            serde_json::from_slice(&std::fs::read(path).ok()?).ok()
        });
        let mut records: Vec<ExitRecord> = records.collect();
        records.sort_by_key(|r| (r.exec_id.is_empty(), r.exited_at_s, r.exited_at_ns));
        records
    }

    /// Removes the socket of the shim that was started here, if nobody listens there any more.
    pub(crate) fn remove_stale_socket(&self) {
        if let Ok(bootstrap) = Bootstrap::load(&self.path) {
            bootstrap.remove_stale_socket();
        }
    }

    /// Unmounts the root and removes everything. It is hidden under a dotted name first, so that
    /// a removal cut short is finished at the next start and never taken for a task.
    ///
    /// # Errors
    /// The first thing that could not be undone; the rest is tried all the same.
    pub(crate) fn delete(&self) -> Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = self.path.with_file_name(format!(".{name}"));
        let unmounted = self.unmount();
        if hidden.exists() {
            // Left by a removal of the same id that was cut short.
            let left = Self { path: hidden.clone(), work: self.work.clone() };
            left.remove()?;
        }
        gantry_failpoint::hit("bundle.hide").context(|| hidden.display().to_string())?;
        match std::fs::rename(&self.path, &hidden) {
            Ok(()) => {
                let moved = Self { path: hidden, work: self.work.clone() };
                unmounted.and(moved.remove())
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => remove_tree(&self.work),
            Err(err) => Err(Error::io(self.path.display(), err)),
        }
    }

    /// Whether it is being removed.
    pub(crate) fn is_hidden(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b".")
    }

    /// Removes a hidden bundle.
    pub(crate) fn remove(&self) -> Result<()> {
        // Never delete through a mount: what is below it is not ours.
        self.unmount()?;
        gantry_failpoint::hit("bundle.remove").context(|| self.path.display().to_string())?;
        remove_tree(&self.path)?;
        remove_tree(&self.work)
    }

    fn unmount(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        gantry_mount::unmount_recursive(&self.path, UnmountFlags::DETACH)
    }
}

/// Whether a container shares its shim with others; how, its program knows. A spec that cannot be
/// read may say anything.
pub(crate) fn is_grouped(spec: &[u8]) -> bool {
    let Ok(spec) = serde_json::from_slice::<Annotated>(spec) else { return true };
    let annotations = spec.annotations.unwrap_or_default();
    GROUP_ANNOTATIONS.iter().any(|name| annotations.contains_key(*name))
}

/// The group on the host of a remapped root: it may enter the bundle.
fn remapped_root(spec: &[u8]) -> Option<u32> {
    // A spec that is not JSON is the shim's to refuse.
    let spec: Spec = serde_json::from_slice(spec).ok()?;
    let mappings = spec.linux?.gid_mappings?;
    mappings.iter().find(|m| m.container == 0 && m.size > 0).map(|m| m.host)
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(mode).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn make_dirs(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(Error::io(path.display(), err)),
    }
}

/// The entries of `dir` with UTF-8 names; none when it does not exist.
fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let read = match std::fs::read_dir(dir) {
        Ok(read) => read,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(err) => {
            tracing::warn!(dir = %dir.display(), %err, "cannot list");
            return Vec::new();
        }
    };
    read.filter_map(|entry| {
        let entry = entry.ok()?;
        Some((entry.file_name().into_string().ok()?, entry.path()))
    })
    .collect()
}

fn report(path: &Path, done: Result<()>) {
    if let Err(err) = done {
        tracing::warn!(path = %path.display(), %err, "left over from an earlier run");
    }
}

#[cfg(test)]
#[path = "bundle/tests.rs"]
mod tests;
