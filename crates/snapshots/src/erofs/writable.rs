//! A filesystem of its own for what is written to one snapshot, so that it cannot take more.
//!
//! ```text
//! rwlayer.img    the filesystem, ext4; the last that is made
//! rw/            where it is mounted
//! rw/fs rw/work  the overlay's upper layer
//! ```
//! It is mounted by the snapshotter, as layers are, and stays so until the snapshot is committed or
//! removed. An overlay on it keeps it going when it is unmounted all the same; it must then not be
//! mounted a second time from the file, but from the loop device that has it, or two would write
//! to it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::{Mount, UnmountFlags, is_mount_point, mount, unmount_all};
use gantry_sys::loopdev;

/// The program that makes the filesystem, of e2fsprogs.
const MKFS: &str = "mke2fs";

/// The filesystem that it makes.
const KIND: &str = "ext4";

/// The smallest that it makes, with a journal.
pub(super) const SIZE_MIN: u64 = 8 << 20;

pub(super) fn image(dir: &Path) -> PathBuf {
    dir.join("rwlayer.img")
}

pub(super) fn place(dir: &Path) -> PathBuf {
    dir.join("rw")
}

/// Whether the snapshot in `dir` has one.
pub(super) fn is_there(dir: &Path) -> bool {
    image(dir).is_file()
}

/// Makes one of `bytes` in the new directory `dir`, has `fill` make what is in it, and leaves it
/// mounted.
///
/// # Errors
/// Unknown with the words of the program; the I/O error; that of `fill`.
pub(super) fn make(dir: &Path, bytes: u64, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (new, place) = (dir.join("rwlayer.new"), place(dir));
    let what = || new.display().to_string();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let file = file.context(what)?;
    file.set_len(bytes).context(what)?;
    let done = Command::new(MKFS)
        .args(["-q", "-F", "-t", KIND, "-m", "0"])
        .arg(&new)
        .stdin(Stdio::null())
        .output()
        .context(|| format!("run {MKFS}"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        return Err(Error::unknown(format!("{MKFS} {}: {}: {said}", new.display(), done.status)));
    }
    fs::create_dir(&place).context(what)?;
    mount(&Mount::new(KIND, new.display().to_string(), ["loop"]), &place)?;
    fill(&place)?;
    // Whole, with its own directories, before it has the name by which it is known.
    File::open(&place).and_then(|root| Ok(rustix::fs::syncfs(root)?)).context(what)?;
    file.sync_all().context(what)?;
    fs::rename(&new, image(dir)).context(what)
}

/// Mounts the one in `dir` where it is not mounted; returns where.
///
/// # Errors
/// The I/O error.
pub(super) fn mounted(dir: &Path) -> Result<PathBuf> {
    let place = place(dir);
    fs::create_dir_all(&place).context(|| place.display().to_string())?;
    if is_mount_point(&place)? {
        return Ok(place);
    }
    let image = image(dir);
    if let Some(device) = loopdev::attached(&image) {
        let none: [&str; 0] = [];
        match mount(&Mount::new(KIND, device.display().to_string(), none), &place) {
            Ok(()) => return Ok(place),
            // Its last user went away meanwhile.
            Err(_) if loopdev::attached(&image).is_none() => {}
            Err(err) => return Err(err),
        }
    }
    mount(&Mount::new(KIND, image.display().to_string(), ["loop"]), &place)?;
    Ok(place)
}

/// Unmounts the one in `dir`, if there is one.
///
/// # Errors
/// The I/O error.
pub(super) fn unmount(dir: &Path) -> Result<()> {
    let place = place(dir);
    match place.symlink_metadata() {
        Ok(_) => unmount_all(&place, UnmountFlags::DETACH),
        Err(_) => Ok(()),
    }
}

/// Unmounts and deletes the one in `dir`, if there is one: a commit has what was in it.
///
/// # Errors
/// The I/O error.
pub(super) fn remove(dir: &Path) -> Result<()> {
    unmount(dir)?;
    let (image, place) = (image(dir), place(dir));
    // The image first: without it the directory is known to be of no use.
    for gone in [fs::remove_file(&image), fs::remove_dir(&place)] {
        match gone {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(|| image.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}
