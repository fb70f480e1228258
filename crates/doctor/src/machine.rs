//! What tasks leave outside the daemon's directories: cgroups and FIFOs.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gantry_core::{Context, Namespace};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_runtime::plugin::Runtime as _;

use crate::{Doctor, Request};

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Deepest cgroup below that of a container that is looked at.
const CGROUP_DEPTH_MAX: usize = 32;

/// The cgroup of a container, in every hierarchy that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    pub(crate) namespace: String,
    pub(crate) id: String,
    paths: Vec<PathBuf>,
}

impl Doctor {
    /// Cgroups named as ours are, without a process, whose container does not exist.
    pub(crate) async fn cgroups(&self, min_age: Duration) -> Result<Vec<Cgroup>> {
        let mut found = Vec::new();
        let all = self.db.namespaces().list().await?;
        for namespace in all {
            let namespace = Namespace::new(namespace.name)?;
            let ns = namespace.as_str().to_owned();
            // Before the records: what has none after this, and is of some age, will have none.
            let on_disk = blocking(move || Ok(cgroups_of(&ns, min_age))).await?;
            if on_disk.is_empty() {
                continue;
            }
            let ctx = Context::new(namespace.clone());
            let containers = self.db.containers().list(&ctx, &[]).await?;
            let known: HashSet<String> = containers.into_iter().map(|c| c.id).collect();
            found.extend(on_disk.into_iter().filter(|cgroup| {
                !known.contains(&cgroup.id) && !self.runtime.has_task(&namespace, &cgroup.id)
            }));
        }
        Ok(found)
    }

    /// Sandboxes by namespace and id: their shims have no task of their own.
    pub(crate) async fn sandboxes(&self) -> Result<HashSet<(String, String)>> {
        let mut all = HashSet::new();
        for namespace in self.db.namespaces().list().await? {
            let ctx = Context::new(Namespace::new(namespace.name.as_str())?);
            for sandbox in self.db.sandboxes().list(&ctx, &[]).await? {
                all.insert((namespace.name.clone(), sandbox.id));
            }
        }
        Ok(all)
    }

    /// Directories of FIFOs that no process has open and no task names.
    pub(crate) async fn fifo_dirs(&self, request: &Request) -> Result<Vec<PathBuf>> {
        let (dirs, min_age) = (request.fifo_dirs.clone(), request.min_age);
        let candidates = blocking(move || Ok(fifo_dirs_of(&dirs, min_age))).await?;
        if candidates.is_empty() {
            return Ok(candidates);
        }
        let mut named = HashSet::new();
        for task in self.runtime.tasks(None).await? {
            // One that does not answer may have any of them: its process has them open.
            if let Ok(state) = task.state("").await {
                let io = state.io;
                named.extend([io.stdin, io.stdout, io.stderr].map(PathBuf::from));
            }
        }
        Ok(candidates
            .into_iter()
            .filter(|dir| !named.iter().any(|path| path.starts_with(dir)))
            .collect())
    }
}

/// The empty cgroups below that of a namespace.
fn cgroups_of(namespace: &str, min_age: Duration) -> Vec<Cgroup> {
    let mut hierarchies = vec![PathBuf::from(CGROUPS)];
    hierarchies.extend(children(Path::new(CGROUPS)).into_iter().filter(|p| p.is_dir()));
    let mut found: Vec<Cgroup> = Vec::new();
    let mut in_use = HashSet::new();
    for path in hierarchies.iter().flat_map(|top| children(&top.join(namespace))) {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let Some(id) = path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else {
            continue;
        };
        if !meta.is_dir() {
            continue;
        }
        let old = meta.modified().is_ok_and(|at| age(at) >= min_age);
        if !old || !is_empty(&path, 0) {
            in_use.insert(id);
        } else if let Some(cgroup) = found.iter_mut().find(|c| c.id == id) {
            cgroup.paths.push(path);
        } else {
            found.push(Cgroup { namespace: namespace.to_owned(), id, paths: vec![path] });
        }
    }
    found.retain(|cgroup| !in_use.contains(&cgroup.id));
    found
}

/// Whether there is no process in a cgroup or below it.
fn is_empty(cgroup: &Path, depth: usize) -> bool {
    depth < CGROUP_DEPTH_MAX
        && fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|procs| procs.is_empty())
        && children(cgroup)
            .iter()
            .filter(|p| p.is_dir() && !p.is_symlink())
            .all(|below| is_empty(below, depth + 1))
}

/// Removes a cgroup; the kernel refuses while a process is in it.
pub(crate) fn remove_cgroup(cgroup: &Cgroup) -> Result<bool> {
    for path in &cgroup.paths {
        remove_cgroup_dir(path, 0)?;
    }
    Ok(true)
}

fn remove_cgroup_dir(path: &Path, depth: usize) -> Result<()> {
    if depth < CGROUP_DEPTH_MAX {
        for below in children(path).iter().filter(|p| p.is_dir() && !p.is_symlink()) {
            remove_cgroup_dir(below, depth + 1)?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path.display(), e)),
        _ => Ok(()),
    }
}

/// Directories of nothing but FIFOs, of some age, that no process has open.
fn fifo_dirs_of(dirs: &[PathBuf], min_age: Duration) -> Vec<PathBuf> {
    let mut candidates: Vec<(PathBuf, Vec<(u64, u64)>)> = dirs
        .iter()
        .flat_map(|dir| children(dir))
        .filter_map(|dir| {
            let meta = fs::symlink_metadata(&dir).ok()?;
            let old = meta.modified().is_ok_and(|at| age(at) >= min_age);
            let fifos = if meta.is_dir() && old { fifos_of(&dir)? } else { return None };
            Some((dir, fifos))
        })
        .collect();
    if candidates.is_empty() {
        return Vec::new();
    }
    let open = open_fifos();
    candidates.retain(|(_, fifos)| !fifos.iter().any(|fifo| open.contains(fifo)));
    candidates.into_iter().map(|(dir, _)| dir).collect()
}

/// Device and inode of each FIFO; none when there is anything else, or nothing.
fn fifos_of(dir: &Path) -> Option<Vec<(u64, u64)>> {
    let fifos: Vec<(u64, u64)> = children(dir)
        .iter()
        .map(|path| {
            let meta = fs::symlink_metadata(path).ok()?;
            meta.file_type().is_fifo().then(|| (meta.dev(), meta.ino()))
        })
        .collect::<Option<_>>()?;
    (!fifos.is_empty()).then_some(fifos)
}

/// The FIFOs that any process has open.
fn open_fifos() -> HashSet<(u64, u64)> {
    let is_process =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes()[0].is_ascii_digit());
    children(Path::new("/proc"))
        .into_iter()
        .filter(is_process)
        .flat_map(|process| children(&process.join("fd")))
        .filter_map(|fd| fs::metadata(fd).ok())
        .filter(|meta| meta.file_type().is_fifo())
        .map(|meta| (meta.dev(), meta.ino()))
        .collect()
}

/// Removes a directory of FIFOs, if it still is one that nobody uses.
pub(crate) fn remove_fifo_dir(dir: &Path) -> Result<bool> {
    let parent = dir.parent().map(Path::to_owned).into_iter().collect::<Vec<_>>();
    if !fifo_dirs_of(&parent, Duration::ZERO).iter().any(|found| found == dir) {
        return Ok(false);
    }
    fs::remove_dir_all(dir).context(|| dir.display().to_string()).map(|()| true)
}

fn age(since: SystemTime) -> Duration {
    since.elapsed().unwrap_or_default()
}

/// The entries of a directory; none when it cannot be read.
fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|e| e.path()).collect()
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::internal("doctor: file work panicked")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_directory_of_fifos_counts_until_someone_opens_one() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("123");
        fs::create_dir(&dir).unwrap();
        let look = || fifo_dirs_of(&[top.path().to_owned()], Duration::ZERO);
        assert!(look().is_empty(), "nothing in it");
        let fifo = dir.join("c1-stdout");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(look(), std::slice::from_ref(&dir));
        assert!(fifo_dirs_of(&[top.path().to_owned()], Duration::from_secs(3600)).is_empty());
        let open = fs::File::options().read(true).write(true).open(&fifo).unwrap();
        assert!(look().is_empty(), "in use");
        assert!(!remove_fifo_dir(&dir).unwrap());
        drop(open);
        fs::write(dir.join("file"), "").unwrap();
        assert!(look().is_empty(), "not only FIFOs");
        fs::remove_file(dir.join("file")).unwrap();
        assert!(remove_fifo_dir(&dir).unwrap());
        assert!(!dir.exists());
    }
}
