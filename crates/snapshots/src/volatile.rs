//! Writable layers whose contents nobody needs after the machine went down.
//!
//! The kernel syncs the whole filesystem below an overlay when it is unmounted, which everyone who
//! uses the disk waits for. Mounted `volatile` it does not. Such a mount leaves a mark in the work
//! directory, and the kernel refuses every later mount there, because it cannot tell whether all
//! that was written has reached the disk. We can: it has as long as the machine has not gone down
//! meanwhile, since the pages are those of the filesystem below. So the boot in which a snapshot
//! was last handed out is noted beside it. In the same boot the mark is taken away; in another one
//! the snapshot is refused, unless nothing was ever written to it.
//!
//! The note is a symbolic link: it is part of the directory, and so on disk before anything that
//! is written to the snapshot later, without a sync.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};

use crate::label;

/// The overlay option.
pub(crate) const OPTION: &str = "volatile";

/// Who tells the boots of this machine apart.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel from which on overlays can be mounted so.
const KERNEL_MIN: (u32, u32) = (5, 10);

/// Whether this kernel has the option.
pub(crate) fn is_supported() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= KERNEL_MIN,
        _ => false,
    }
}

/// Whether the labels of a snapshot ask for it.
pub(crate) fn is_asked(labels: &Labels) -> bool {
    labels.get(label::VOLATILE).is_some_and(|value| value == "true")
}

/// Makes the snapshot in `dir`, with these upper and work directories, ready to be mounted.
///
/// # Errors
/// FailedPrecondition when the machine went down since it was used; the I/O error.
pub(crate) fn ready(dir: &Path, upper: &Path, work: &Path) -> Result<()> {
    check(dir, upper, work)?;
    let what = || dir.display().to_string();
    let (note, boot) = (note(dir), boot_id()?);
    if fs::read_link(&note).is_ok_and(|noted| noted != boot) {
        fs::remove_file(&note).context(what)?;
    }
    match symlink(&boot, &note) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).context(what),
        _ => {}
    }
    match fs::remove_dir_all(mark(work)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context(what),
        _ => Ok(()),
    }
}

/// Refuses a snapshot of which the machine may have lost something.
///
/// # Errors
/// As [`ready`].
pub(crate) fn check(dir: &Path, upper: &Path, work: &Path) -> Result<()> {
    let what = || dir.display().to_string();
    match fs::read_link(note(dir)) {
        Ok(noted) if noted == boot_id()? => return Ok(()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).context(what),
    }
    let untouched = fs::read_dir(upper).context(what)?.next().is_none();
    if untouched && !mark(work).exists() {
        return Ok(());
    }
    Err(Error::failed_precondition(format!(
        "snapshot in {}: it is volatile and the machine was started anew since it was used, so \
         what was written to it may be incomplete; remove it and prepare another",
        dir.display()
    )))
}

/// Forgets that the snapshot in `dir` was volatile: it is committed, and on disk.
///
/// # Errors
/// The I/O error.
pub(crate) fn forget(dir: &Path) -> Result<()> {
    match fs::remove_file(note(dir)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Where the boot is noted.
fn note(dir: &Path) -> PathBuf {
    dir.join("volatile")
}

/// What the kernel leaves in a work directory.
fn mark(work: &Path) -> PathBuf {
    work.join("work/incompat/volatile")
}

fn boot_id() -> Result<PathBuf> {
    let id = fs::read_to_string(BOOT_ID).context(|| BOOT_ID.to_owned())?;
    Ok(PathBuf::from(id.trim()))
}
