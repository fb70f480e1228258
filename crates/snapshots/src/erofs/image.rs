//! Making images, and what that needs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gantry_errdefs::{Error, Result, ResultExt as _};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// The program that makes them, of Debian's erofs-utils.
const MKFS: &str = "mkfs.erofs";

/// Most bytes of the program's complaints that go into an error.
const STDERR_BYTES_MAX: usize = 2048;

/// Identifier of every image: which one is mounted is told by its path, and the same layer shall
/// make the same image.
const UUID: &str = "00000000-0000-0000-0000-000000000000";

/// Checks that the kernel has erofs, built in or as a module.
pub(super) fn check_kernel() -> Result<()> {
    let has = || fs::read_to_string("/proc/filesystems").is_ok_and(|text| lists_erofs(&text));
    if has() {
        return Ok(());
    }
    // Where it is a module it may not be loaded yet. That it cannot be is told below.
    let loaded = Command::new("modprobe").arg("erofs").stdin(Stdio::null()).output();
    if let Err(err) = loaded {
        tracing::debug!(%err, "modprobe erofs");
    }
    if has() {
        return Ok(());
    }
    Err(Error::failed_precondition("the kernel has no erofs"))
}

fn lists_erofs(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("erofs"))
}

/// Makes images.
#[derive(Debug)]
pub(super) struct Maker {
    program: PathBuf,
}

impl Maker {
    /// Looks for the program on the PATH, and where Debian has it.
    ///
    /// # Errors
    /// FailedPrecondition when it is not there.
    pub(super) fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .chain(["/usr/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
            .map(|dir| dir.join(MKFS))
            .find(|program| program.is_file());
        match program {
            Some(program) => Ok(Self { program }),
            None => Err(Error::failed_precondition(format!("{MKFS} is not on the PATH"))),
        }
    }

    /// Writes the image of what is in the directory `from` to `to`, over what may be there, and
    /// has it on disk when it returns.
    ///
    /// # Errors
    /// Unknown with the program's own words; the I/O error.
    pub(super) fn make(&self, from: &Path, to: &Path) -> Result<()> {
        let what = || to.display().to_string();
        match fs::remove_file(to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context(what),
            _ => {}
        }
        let done = Command::new(&self.program)
            .args(["--quiet", "--preserve-mtime", "-U", UUID])
            .arg(to)
            .arg(from)
            .stdin(Stdio::null())
            .output()
            .context(|| format!("run {}", self.program.display()))?;
        if !done.status.success() {
            let said = [&done.stderr[..], &done.stdout[..]].concat();
            let said = &said[said.len().saturating_sub(STDERR_BYTES_MAX)..];
            return Err(Error::unknown(format!(
                "{MKFS} {}: {}: {}",
                from.display(),
                done.status,
                String::from_utf8_lossy(said).trim()
            )));
        }
        File::open(to).and_then(|file| file.sync_all()).context(what)
    }
}

/// Has the image `from`, which someone has made, at `to` as well, over what may be there, and on
/// disk.
///
/// # Errors
/// The I/O error.
pub(super) fn keep(from: &Path, to: &Path) -> Result<()> {
    let what = || to.display().to_string();
    match fs::remove_file(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context(what),
        _ => {}
    }
    // Not renamed: should the commit fail, the next one finds it where it was.
    fs::hard_link(from, to).context(what)?;
    File::open(to).and_then(|file| file.sync_all()).context(what)
}

/// Checks that the filesystem at `root` has fs-verity.
///
/// # Errors
/// Unimplemented where it has not; the I/O error.
pub(super) fn check_verity(root: &Path) -> Result<()> {
    let what = || root.display().to_string();
    let probe = root.join(".verity-probe");
    File::create(&probe).context(what)?;
    let enabled = gantry_sys::verity::enable(&probe);
    fs::remove_file(&probe).context(what)?;
    enabled.map_err(|err| {
        Error::unimplemented(format!(
            "enable_fsverity: the filesystem of {} has no fs-verity: {err}",
            root.display()
        ))
    })
}

/// Makes a file immutable or not; where the filesystem cannot, it stays as it is.
pub(super) fn set_immutable(path: &Path, immutable: bool) {
    let Ok(file) = File::open(path) else { return };
    let changed = ioctl_getflags(&file).and_then(|old| {
        let mut new = old;
        new.set(IFlags::IMMUTABLE, immutable);
        if new == old { Ok(()) } else { ioctl_setflags(&file, new) }
    });
    if let Err(err) = changed {
        tracing::debug!(path = %path.display(), %err, "flags of a layer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erofs_is_told_from_its_neighbours() {
        assert!(lists_erofs("nodev\tsysfs\n\terofs\n\text4\n"));
        assert!(!lists_erofs("nodev\tnerofs\n\tcerofs\n\text4\n"));
    }
}
