//! Taking mounts away.

use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use gantry_errdefs::{Error, Result, ResultExt as _};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::UnmountFlags as Raw;

use crate::mountinfo;

/// How often a busy mount is tried again before it is detached: short-lived users (a process that
/// just exited, a scanner) are gone by then.
const BUSY_TRIES: u32 = 10;

/// Pause between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Most mounts one [`unmount_all`] takes off one target; more is a loop, not a stack.
const STACK_MAX: u32 = 1024;

/// How to unmount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmountFlags {
    /// Detach at once and clean up when no longer busy (`MNT_DETACH`).
    pub detach: bool,
    /// Do not follow a symbolic link at the end of the path.
    pub no_follow: bool,
}

impl UnmountFlags {
    /// Detach at once; never follow a link.
    pub const DETACH: Self = Self { detach: true, no_follow: true };

    fn raw(self) -> Raw {
        let mut raw = Raw::empty();
        raw.set(Raw::DETACH, self.detach);
        raw.set(Raw::NOFOLLOW, self.no_follow);
        raw
    }
}

/// Unmounts the topmost mount at `target`. A target that is not a mount point, or is missing, is
/// success. A busy one is tried again for a moment and then detached.
///
/// # Errors
/// The kernel's error with the path.
pub fn unmount(target: &Path, flags: UnmountFlags) -> Result<()> {
    try_unmount(target, flags).map(drop)
}

/// Unmounts everything stacked at `target`.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_all(target: &Path, flags: UnmountFlags) -> Result<()> {
    for _ in 0..STACK_MAX {
        if !try_unmount(target, flags)? {
            return Ok(());
        }
    }
    Err(Error::unknown(format!("unmount {}: still mounted after {STACK_MAX}", target.display())))
}

/// Unmounts everything at and below `target`, deepest first. Detaching takes the whole tree off in
/// one step per mount stacked at `target`.
///
/// # Errors
/// The first error met, after everything else was tried.
pub fn unmount_recursive(target: &Path, flags: UnmountFlags) -> Result<()> {
    let target = match fs::canonicalize(target) {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A mount whose server is gone can still be detached.
        Err(_) => target.to_owned(),
    };
    let mut points: Vec<_> = mountinfo()?
        .into_iter()
        .map(|m| m.mount_point)
        .filter(|p| p.starts_with(&target))
        .collect();
    // Later lines may cover earlier ones of the same depth, so the order of the table is kept.
    points.sort_by_key(|p| p.components().count());
    let mut first_error = Ok(());
    for point in points.into_iter().rev() {
        let result = unmount(&point, flags);
        first_error = first_error.and(result);
    }
    first_error
}

/// Whether `path` is a mount point (bind mounts included).
///
/// # Errors
/// The I/O error; NotFound when the path does not exist.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let stat =
        statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::empty())
            .map_err(io::Error::from)
            .context(|| path.display().to_string())?;
    if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8.
    let path = fs::canonicalize(path).context(|| path.display().to_string())?;
    Ok(mountinfo()?.iter().any(|m| m.mount_point == path))
}

/// Whether there was something to unmount.
fn try_unmount(target: &Path, flags: UnmountFlags) -> Result<bool> {
    let fail = |e: Errno| Err(Error::io(format!("unmount {}", target.display()), e.into()));
    for _ in 0..BUSY_TRIES {
        match rustix::mount::unmount(target, flags.raw()) {
            Ok(()) => return Ok(true),
            Err(Errno::INVAL | Errno::NOENT) => return Ok(false),
            Err(Errno::BUSY) => sleep(BUSY_PAUSE),
            Err(Errno::INTR) => {}
            Err(e) => return fail(e),
        }
    }
    tracing::warn!(target = %target.display(), "unmount: busy, detaching");
    match rustix::mount::unmount(target, flags.raw() | Raw::DETACH) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(e) => fail(e),
    }
}
