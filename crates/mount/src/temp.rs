//! Temporary mounts.

use std::path::{Path, PathBuf};

use gantry_errdefs::Result;

use crate::Mount;

/// The directory under which temporary mounts are made. Everything in it belongs to one process:
/// what a crash left there is unmounted and removed by the next [`TempRoot::open`].
#[derive(Clone, Debug)]
pub struct TempRoot {
    path: PathBuf,
}

impl TempRoot {
    /// Takes `path` (made 0700 if missing) and cleans leftovers.
    ///
    /// # Errors
    /// The I/O error; leftovers that cannot be removed only warn.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { path: path.into() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts `mounts` at a fresh directory.
    ///
    /// # Errors
    /// As [`crate::mount_all`]; nothing is left behind.
    pub fn mount(&self, mounts: &[Mount]) -> Result<TempMount> {
        let _ = mounts;
        todo!()
    }

    /// Mounts `mounts` read-only ([`Mount::read_only`]) at a fresh directory.
    ///
    /// # Errors
    /// As [`crate::mount_all`]; nothing is left behind.
    pub fn mount_readonly(&self, mounts: &[Mount]) -> Result<TempMount> {
        let read_only: Vec<Mount> = mounts.iter().map(Mount::read_only).collect();
        self.mount(&read_only)
    }
}

/// A temporary mount. Dropping it unmounts; [`TempMount::unmount`] does the same and reports.
#[derive(Debug)]
pub struct TempMount {
    path: PathBuf,
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
    pub fn unmount(self) -> Result<()> {
        todo!()
    }
}
