//! A file system of its own for one round of measuring.
//!
//! What a round costs must not depend on the rounds before it: ext4 looks for inodes at those that
//! were just deleted, and finds blocks among what is left. So a round gets a new ext4, on a loop
//! device that passes the page cache of the disk below by, as a disk would.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Size of the file system; its file is sparse.
const DISK_BYTES: u64 = 16 << 30;

/// A mounted ext4, taken down when dropped.
#[derive(Debug)]
pub(crate) struct FreshDisk {
    dir: TempDir,
    device: String,
}

impl FreshDisk {
    /// Makes and mounts one, in the directory that benches have on disk.
    ///
    /// # Panics
    /// When it cannot be made.
    pub(crate) fn make() -> Self {
        let dir = crate::root().expect("a directory on disk");
        let image = dir.path().join("disk");
        let file = std::fs::File::create(&image).expect("a file for the disk");
        file.set_len(DISK_BYTES).expect("a file for the disk");
        // Nothing may be left to the kernel to initialise while something is measured.
        let eager = "lazy_itable_init=0,lazy_journal_init=0";
        run("mkfs.ext4", ["-q".as_ref(), "-E".as_ref(), eager.as_ref(), image.as_os_str()]);
        let options = ["--find", "--show", "--direct-io=on"].map(OsStr::new);
        let device = run("losetup", options.into_iter().chain([image.as_os_str()]));
        let disk = Self { dir, device };
        std::fs::create_dir(disk.path()).expect("a mount point");
        run("mount", [OsStr::new(&disk.device), disk.path().as_os_str()]);
        disk
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for FreshDisk {
    fn drop(&mut self) {
        // A daemon may have left mounts of snapshots below it.
        let _done = status("umount", ["-R".as_ref(), self.path().as_os_str()]);
        let _done = status("losetup", ["-d", &self.device]);
    }
}

/// Runs a program that must succeed; returns the line it prints.
fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> String {
    let out = Command::new(program).args(args).output();
    let out = out.unwrap_or_else(|err| panic!("{program}: {err}"));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program}: {text}");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn status<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> bool {
    Command::new(program).args(args).status().is_ok_and(|status| status.success())
}

/// Writes out what anyone left unwritten.
pub(crate) fn settle() {
    let _done = status("sync", None::<&str>);
}
