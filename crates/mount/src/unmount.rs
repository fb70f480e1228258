//! Taking mounts away.

use std::path::Path;

use gantry_errdefs::Result;

/// How to unmount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmountFlags {
    /// Detach at once and clean up when no longer busy (`MNT_DETACH`).
    pub detach: bool,
    /// Do not follow a symbolic link at the end of the path.
    pub no_follow: bool,
}

/// Unmounts the topmost mount at `target`. A target that is not a mount point, or is missing, is
/// success. A busy one is tried again for a moment and then detached.
///
/// # Errors
/// The kernel's error with the path.
pub fn unmount(target: &Path, flags: UnmountFlags) -> Result<()> {
    let _ = (target, flags);
    todo!()
}

/// Unmounts everything stacked at `target`.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_all(target: &Path, flags: UnmountFlags) -> Result<()> {
    let _ = (target, flags);
    todo!()
}

/// Unmounts everything at and below `target`, deepest first.
///
/// # Errors
/// The first error met, after everything else was tried.
pub fn unmount_recursive(target: &Path, flags: UnmountFlags) -> Result<()> {
    let _ = (target, flags);
    todo!()
}

/// Whether `path` is a mount point (bind mounts included).
///
/// # Errors
/// The I/O error; NotFound when the path does not exist.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let _ = path;
    todo!()
}
