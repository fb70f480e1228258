//! Making mounts.

use std::path::Path;

use gantry_errdefs::Result;

use crate::Mount;

/// Mounts `mounts` in order, each at `target` joined with its own `target`. When one fails, those
/// made before it are unmounted again.
///
/// # Errors
/// The failed mount's error, naming kind, source, target and the kernel's message.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    let _ = (mounts, target);
    todo!()
}

/// Makes one mount at `target` joined with its own `target` (which must not leave `target`).
///
/// # Errors
/// InvalidArgument for options that cannot be, else the kernel's error with what was tried.
pub fn mount(mount: &Mount, target: &Path) -> Result<()> {
    let _ = (mount, target);
    todo!()
}
