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
use gantry_sys::machine;

use crate::label;

/// The overlay option.
const OPTION: &str = "volatile";

/// The kernel from which on overlays can be mounted so.
const KERNEL_MIN: (u32, u32) = (5, 10);

/// Whether this kernel has the option.
pub(crate) fn is_supported() -> bool {
    machine::kernel_version() >= KERNEL_MIN
}

/// Whether a snapshot with these labels is mounted so: all are, by the `options` of every mount, or
/// the labels ask for it and the kernel is one that `takes` it.
pub(crate) fn is_wanted(takes: bool, options: &[String], labels: &Labels) -> bool {
    let asked = takes && labels.get(label::VOLATILE).is_some_and(|value| value == "true");
    asked || has_option(options)
}

fn has_option(options: &[String]) -> bool {
    options.iter().any(|option| option == OPTION)
}

/// Makes the snapshot in `dir`, with these upper and work directories, ready to be mounted with
/// `options`, which get the one for it.
///
/// # Errors
/// FailedPrecondition when the machine went down since it was used; the I/O error.
pub(crate) fn ready(
    options: &mut Vec<String>,
    dir: &Path,
    upper: &Path,
    work: &Path,
) -> Result<()> {
    if !has_option(options) {
        options.push(OPTION.to_owned());
    }
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
    machine::boot_id().map(PathBuf::from).context(|| machine::BOOT_ID)
}
