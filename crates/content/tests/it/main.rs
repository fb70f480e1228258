//! The local store on a disk that loses power.
//!
//! Everything lives on a filesystem in an image file; a copy of the image holds what the
//! filesystem had handed to the disk at that instant, and nothing that was only in its cache.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use gantry_content::{LocalStore, testsuite};
use gantry_core::Digest;
use gantry_mount::{Mount, UnmountFlags, mount, unmount_all};
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 96 << 20;

struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let image = temp.path().join("image");
        fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        assert!(Command::new("mkfs.ext4").arg("-q").arg(image).status().unwrap().success());
        Self::mount(temp)
    }

    fn mount(temp: TempDir) -> Self {
        let disk = Self(temp);
        fs::create_dir(disk.path()).unwrap();
        let image = disk.0.path().join("image").display().to_string();
        // The journal would be written every few seconds by itself.
        mount(&Mount::new("ext4", image, ["loop", "commit=600"]), &disk.path()).unwrap();
        disk
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    /// The disk as a power cut would leave it now.
    fn cut(&self) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (self.0.path().join("image"), temp.path().join("image"));
        let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
        assert!(copied.success());
        Self::mount(temp)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount_all(&self.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn root_committed_blobs_survive_a_power_cut() {
    let disk = Disk::new();
    let store = LocalStore::open(disk.path().join("content")).unwrap();
    let mut committed = Vec::new();
    for len in [10, 100_000, 20_000_000] {
        let data = vec![len as u8 | 1; len];
        let digest = testsuite::put(&store, &format!("r{len}"), &data).await.unwrap();
        committed.push((digest, data));
        let mut open = testsuite::open(&store, "open").await.unwrap();
        open.write(Bytes::from(vec![9; 1_000_000])).await.unwrap();
        let after = disk.cut();
        let after_store = LocalStore::open(after.path().join("content")).unwrap();
        for (digest, data) in &committed {
            let found = testsuite::get(&after_store, digest).await.unwrap();
            assert_eq!(Digest::of(&found), *digest);
            assert_eq!(found.len(), data.len());
        }
        // What was not committed is gone or goes on; either way it can be written.
        let mut again = testsuite::open(&after_store, "open").await.unwrap();
        again.truncate(0).await.unwrap();
        again.write(Bytes::from_static(b"again")).await.unwrap();
        again.commit(5, Some(&Digest::of(b"again"))).await.unwrap();
    }
}
