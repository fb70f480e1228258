//! Temporary mounts.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_errdefs::{Error, Result, ResultExt as _};

use crate::unmount::{UnmountFlags, unmount_all};
use crate::{Mount, mount_all};

/// The directory under which temporary mounts are made. Everything in it belongs to one process:
/// what a crash left there is unmounted and removed by the next [`TempRoot::open`]. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct TempRoot {
    path: Arc<PathBuf>,
    next: Arc<AtomicU64>,
    live: Live,
}

/// The directories of mounts that are wanted.
type Live = Arc<Mutex<HashSet<PathBuf>>>;

impl TempRoot {
    /// Takes `path` (made 0700 if missing) and cleans leftovers.
    ///
    /// # Errors
    /// The I/O error; leftovers that cannot be removed only warn.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let what = || path.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(&path).context(what)?;
        for entry in fs::read_dir(&path).context(what)? {
            let left = entry.context(what)?.path();
            tracing::info!(path = %left.display(), "cleaning a temporary mount");
            if let Err(err) = remove(&left, UnmountFlags::DETACH) {
                tracing::warn!(%err, "a temporary mount is left");
            }
        }
        Ok(Self { path: Arc::new(path), next: Arc::default(), live: Arc::default() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts `mounts` at a fresh directory, overlays without `volatile` ([`Mount::temporary`]).
    ///
    /// # Errors
    /// As [`mount_all`]; nothing is left behind.
    pub fn mount(&self, mounts: &[Mount]) -> Result<TempMount> {
        let temp = TempMount { path: self.fresh_dir()?, mounted: true, live: self.live.clone() };
        let mounts: Vec<Mount> = mounts.iter().map(Mount::temporary).collect();
        // On failure dropping `temp` removes the directory.
        mount_all(&mounts, &temp.path)?;
        Ok(temp)
    }

    /// Mounts `mounts` read-only ([`Mount::read_only`]) at a fresh directory.
    ///
    /// # Errors
    /// As [`mount_all`]; nothing is left behind.
    pub fn mount_readonly(&self, mounts: &[Mount]) -> Result<TempMount> {
        let read_only: Vec<Mount> = mounts.iter().map(Mount::read_only).collect();
        self.mount(&read_only)
    }

    /// Directories that nobody uses: what could not be unmounted when it should have been.
    ///
    /// # Errors
    /// The I/O error.
    pub fn strays(&self) -> Result<Vec<PathBuf>> {
        let what = || self.path.display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir(&*self.path).context(what)? {
            let path = entry.context(what)?.path();
            let in_use = live(&self.live).contains(&path);
            if !in_use && path.exists() {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Unmounts and removes a stray, if it still is one; false if it is not.
    ///
    /// # Errors
    /// The unmount's error.
    pub fn remove_stray(&self, stray: &Path) -> Result<bool> {
        if !self.strays()?.iter().any(|found| found == stray) {
            return Ok(false);
        }
        remove(stray, UnmountFlags::DETACH).map(|()| true)
    }

    fn fresh_dir(&self) -> Result<PathBuf> {
        loop {
            let name = format!("mount-{}", self.next.fetch_add(1, Ordering::Relaxed));
            let path = self.path.join(name);
            // Before it is there, so that it never looks left behind.
            live(&self.live).insert(path.clone());
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(path),
                // A leftover that could not be cleaned; the next number is free.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    live(&self.live).remove(&path);
                }
                Err(e) => {
                    live(&self.live).remove(&path);
                    return Err(Error::io(path.display(), e));
                }
            }
        }
    }
}

/// A temporary mount. Dropping it unmounts (which may block: let it go on the blocking pool);
/// [`TempMount::unmount`] does the same and reports.
#[derive(Debug)]
pub struct TempMount {
    path: PathBuf,
    mounted: bool,
    live: Live,
}

impl TempMount {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and removes the directory.
    ///
    /// # Errors
    /// The unmount's error; the directory is then cleaned at the next [`TempRoot::open`].
    pub fn unmount(mut self) -> Result<()> {
        self.mounted = false;
        let removed = remove(&self.path, UnmountFlags::default());
        live(&self.live).remove(&self.path);
        removed
    }
}

impl Drop for TempMount {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        if let Err(err) = remove(&self.path, UnmountFlags::default()) {
            tracing::warn!(%err, "a temporary mount is left until the next start");
        }
        live(&self.live).remove(&self.path);
    }
}

fn live(live: &Live) -> MutexGuard<'_, HashSet<PathBuf>> {
    // Single operations on the set.
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unmounts all at `path` and removes the directory, never anything in it: should an unmount not
/// have worked, what is mounted stays whole.
fn remove(path: &Path, flags: UnmountFlags) -> Result<()> {
    unmount_all(path, flags)?;
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}
