//! Power cuts: everything lives on a filesystem in an image file, and the image as the disk has it
//! at one instant is what the next start finds.
//!
//! The copy holds what the filesystem had handed to the disk by then, and nothing that was only
//! in its cache. (A disk that loses its own write cache is not simulated: the flushes go with the
//! same calls.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use gantry_core::Labels;
use gantry_mount::{Mount, UnmountFlags, mount, unmount_all};
use gantry_snapshots::{CommitOptions, Kind, Overlayfs, OverlayfsConfig, Snapshotter};
use gantry_store::{Options, RedbStore};
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 96 << 20;
const FILES: usize = 300;

/// A mounted image.
struct Disk {
    temp: TempDir,
}

impl Disk {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let image = fs::File::create(temp.path().join("image")).unwrap();
        image.set_len(IMAGE_BYTES).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-E", "lazy_itable_init=0"])
            .arg(temp.path().join("image"))
            .status()
            .unwrap();
        assert!(made.success());
        Self::mount(temp)
    }

    fn mount(temp: TempDir) -> Self {
        let at = temp.path().join("disk");
        fs::create_dir(&at).unwrap();
        let image = temp.path().join("image").display().to_string();
        // The journal would be written every few seconds by itself.
        mount(&Mount::new("ext4", image, ["loop", "commit=600"]), &at).unwrap();
        Self { temp }
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join("disk")
    }

    /// The disk as a power cut would leave it now.
    fn cut(&self) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .arg(self.temp.path().join("image"))
            .arg(temp.path().join("image"))
            .status()
            .unwrap();
        assert!(copied.success());
        Self::mount(temp)
    }

    fn open(&self) -> Overlayfs {
        let store = RedbStore::open(self.path().join("db"), &Options::default()).unwrap();
        let root = self.path().join("overlayfs");
        Overlayfs::open(root, OverlayfsConfig::default(), Arc::new(store)).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount_all(&self.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn data(i: usize) -> Vec<u8> {
    vec![(i % 251) as u8 + 1; 100 + i * 17]
}

fn fill(root: &Path, files: usize) {
    for i in 0..files {
        let dir = root.join(format!("d{}", i % 10));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(i.to_string()), data(i)).unwrap();
    }
}

fn whole(root: &Path, files: usize) -> bool {
    (0..files).all(|i| {
        fs::read(root.join(format!("d{}/{i}", i % 10))).is_ok_and(|found| found == data(i))
    })
}

fn upper(mounts: &[Mount]) -> PathBuf {
    PathBuf::from(&mounts[0].source)
}

#[tokio::test]
async fn root_committed_layers_survive_a_power_cut() {
    let disk = Disk::new();
    let sn = disk.open();
    // One layer that is synced file by file, one by filesystem.
    for (name, files) in [("small", 3), ("big", FILES)] {
        let layer = upper(&sn.prepare("key", None, Labels::new()).await.unwrap());
        fill(&layer, files);
        sn.commit(name, "key", CommitOptions::default()).await.unwrap();
        let after = disk.cut();
        let sn = after.open();
        assert_eq!(sn.stat(name).await.unwrap().kind, Kind::Committed);
        let view = upper(&sn.view("v", Some(name), Labels::new()).await.unwrap());
        assert!(whole(&view, files), "{name}");
    }
}

#[tokio::test]
async fn root_prepared_snapshots_survive_a_power_cut() {
    let disk = Disk::new();
    let sn = disk.open();
    let layer = upper(&sn.prepare("key", None, Labels::new()).await.unwrap());
    fill(&layer, FILES);
    let after = disk.cut();
    let sn = after.open();
    let again = upper(&sn.mounts("key").await.unwrap());
    assert!(again.is_dir());
    // What nobody synced is lost, or the test above would show nothing.
    assert!(!whole(&again, FILES));
    sn.commit("layer", "key", CommitOptions::default()).await.unwrap();
}
