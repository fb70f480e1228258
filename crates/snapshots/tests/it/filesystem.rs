//! Filesystems of one's own, in files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_mount::{Mount, UnmountFlags, mount, unmount_recursive};
use tempfile::TempDir;

/// A filesystem in a file, mounted through a loop device until it is dropped.
pub(crate) struct Filesystem {
    dir: TempDir,
}

impl Filesystem {
    /// Makes one of `mebibytes` with `mkfs` (the program and its arguments) and mounts it.
    pub(crate) fn new(kind: &str, mkfs: &[&str], mebibytes: u64, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        make(&image, mkfs, mebibytes);
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let options = options.iter().copied().chain(["loop"]);
        mount(&Mount::new(kind, image.display().to_string(), options), &at).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let gone = unmount_recursive(&self.path(), UnmountFlags::default());
        if let Err(err) = gone {
            eprintln!("a filesystem of a test is left: {err}");
        }
    }
}

/// Makes a filesystem in a new file.
pub(crate) fn make(image: &Path, mkfs: &[&str], mebibytes: u64) {
    File::create_new(image).unwrap().set_len(mebibytes << 20).unwrap();
    let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(image).output();
    let made = made.unwrap_or_else(|e| panic!("{}: {e}", mkfs[0]));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A scratch file for blockfile snapshots: an ext4 without anything in it.
pub(crate) fn scratch(dir: &Path) -> PathBuf {
    let (image, at) = (dir.join("scratch-file"), dir.join("scratch-mnt"));
    // A journal is of no use to files that are copied whole, and takes a few MiB of each.
    make(&image, &["mkfs.ext4", "-q", "-F", "-O", "^has_journal"], 16);
    std::fs::create_dir(&at).unwrap();
    mount(&Mount::new("ext4", image.display().to_string(), ["loop"]), &at).unwrap();
    std::fs::remove_dir(at.join("lost+found")).unwrap();
    unmount_recursive(&at, UnmountFlags::default()).unwrap();
    std::fs::remove_dir(&at).unwrap();
    image
}
