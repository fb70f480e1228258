//! What erofs layers can be told to do: be checked by the kernel, and have bounded writable layers.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use gantry_core::Labels;
use gantry_mount::{UnmountFlags, mount_all, unmount_all};
use gantry_snapshots::testsuite::{self, Counts};
use gantry_snapshots::{CommitOptions, Erofs, ErofsConfig, Snapshotter, label};
use gantry_store::Store;
use gantry_sys::verity;
use gantry_testkit::{Vm, system_program};

use crate::others::{commit, mounts_below, store, within};
use crate::suite::leaves_nothing_at;

const MEBIBYTE: usize = 1 << 20;

/// Where the machine has a filesystem with fs-verity.
const FILESYSTEM: &str = "GANTRY_VERITY_FILESYSTEM";

/// A filesystem with fs-verity, and this program in it.
const SCRIPT: &str = r"
set -e
mkdir -p /ext4 /tmp
truncate -s 64M /ext4.img
/bin/mke2fs -q -F -t ext4 -O verity /ext4.img
mount -t ext4 -o loop /ext4.img /ext4
export GANTRY_VERITY_FILESYSTEM=/ext4
/bin/it --ignored --exact --nocapture erofs::verity_in_the_machine
";

fn bounded(on: &Path, mebibytes: usize, store: Arc<dyn Store>) -> Erofs {
    let writable_bytes = (mebibytes * MEBIBYTE) as u64;
    let config = ErofsConfig { writable_bytes, ..ErofsConfig::default() };
    Erofs::open(on.join("root"), config, store).unwrap()
}

#[tokio::test]
async fn root_erofs_suite_with_bounded_writable_layers() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sn = bounded(dir.path(), 16, store());
    testsuite::records(&sn).await;
    testsuite::trees(&sn, at.path(), Counts::ImageOnceCommitted).await;
    leaves_nothing_at(&dir.path().join("root"), &sn).await;
    assert!(mounts_below(dir.path()).is_empty());
}

#[tokio::test]
async fn root_a_writable_layer_holds_what_it_was_given() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sn = bounded(dir.path(), 16, store());
    let file = |mebibytes: usize| {
        let path = at.path().join("file");
        fs::write(path, vec![1; mebibytes * MEBIBYTE])
    };
    commit(&sn, "image", None, &at, "image").await;
    for parent in [None, Some("image")] {
        let mounts = sn.prepare("a", parent, Labels::new()).await.unwrap();
        let refused = within(&mounts, &at, |_| file(20).unwrap_err());
        assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
        within(&mounts, &at, |_| file(4).unwrap());
        sn.remove("a").await.unwrap();
    }
    // Layers are as large as they are.
    let unpacked = Labels::from([(label::TARGET_REF.to_owned(), "two".to_owned())]);
    let mounts = sn.prepare("extract", Some("image"), unpacked).await.unwrap();
    within(&mounts, &at, |_| file(20).unwrap());
    sn.commit("two", "extract", CommitOptions::default()).await.unwrap();
    sn.close().await.unwrap();
    assert!(mounts_below(dir.path()).is_empty());
    let config = ErofsConfig { writable_bytes: 1 << 20, ..ErofsConfig::default() };
    let err = Erofs::open(dir.path().join("small"), config, store()).map(drop).unwrap_err();
    assert!(err.is_invalid_argument(), "{err}");
}

#[tokio::test]
async fn root_a_writable_layer_is_mounted_once_and_outlives_the_snapshotter() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let records = store();
    let sn = bounded(dir.path(), 16, Arc::clone(&records));
    commit(&sn, "image", None, &at, "image").await;
    let mounts = sn.prepare("a", Some("image"), Labels::new()).await.unwrap();
    mount_all(&mounts, at.path()).unwrap();
    fs::write(at.path().join("before"), "1").unwrap();
    // Closed and opened again while a container uses it.
    sn.close().await.unwrap();
    drop(sn);
    fs::write(at.path().join("meanwhile"), "2").unwrap();
    let sn = bounded(dir.path(), 16, Arc::clone(&records));
    assert_eq!(sn.mounts("a").await.unwrap(), mounts);
    fs::write(at.path().join("after"), "3").unwrap();
    let upper = dir.path().join("root/snapshots/2/rw/fs");
    for (name, text) in [("before", "1"), ("meanwhile", "2"), ("after", "3")] {
        assert_eq!(fs::read_to_string(upper.join(name)).unwrap(), text, "the same filesystem");
    }
    unmount_all(at.path(), UnmountFlags::default()).unwrap();
    // And with nobody using it, as after a reboot.
    sn.close().await.unwrap();
    assert!(mounts_below(dir.path()).is_empty());
    drop(sn);
    let sn = bounded(dir.path(), 16, records);
    assert!(sn.usage("a").await.unwrap().inodes > 3);
    sn.commit("done", "a", CommitOptions::default()).await.unwrap();
    sn.cleanup().await.unwrap();
    assert!(!dir.path().join("root/snapshots/2/rwlayer.img").exists());
    let mounts = sn.view("v", Some("done"), Labels::new()).await.unwrap();
    let found = within(&mounts, &at, |root| fs::read_to_string(root.join("after")).unwrap());
    assert_eq!(found, "3");
    for name in ["v", "done", "image"] {
        sn.remove(name).await.unwrap();
    }
    sn.cleanup().await.unwrap();
    assert!(mounts_below(dir.path()).is_empty());
}

#[test]
fn root_vm_erofs_layers_are_checked_by_the_kernel() {
    let this = std::env::current_exe().unwrap();
    let vm = Vm::new()
        .only_modules(&["overlay", "loop", "erofs"])
        .program(&this, "/bin/it")
        .program(&system_program("mke2fs"), "/bin/mke2fs")
        .program(&system_program("mkfs.erofs"), "/bin/mkfs.erofs")
        .program(&system_program("chattr"), "/bin/chattr")
        .file("/etc/mke2fs.conf", b"[defaults]\n\tbase_features = has_journal,extent,filetype\n");
    vm.run(SCRIPT).assert_ok();
}

#[tokio::test]
#[ignore = "run in the machine by root_vm_erofs_layers_are_checked_by_the_kernel"]
async fn verity_in_the_machine() {
    let disk = PathBuf::from(std::env::var_os(FILESYSTEM).expect("only the machine runs this"));
    let (root, at) = (disk.join("root"), tempfile::tempdir().unwrap());
    let open = |verity: bool, store: Arc<dyn Store>| {
        let config = ErofsConfig { verity, set_immutable: true, ..ErofsConfig::default() };
        Erofs::open(&root, config, store).unwrap()
    };
    let records = store();
    let sn = open(true, Arc::clone(&records));
    commit(&sn, "one", None, &at, "one").await;
    commit(&sn, "two", Some("one"), &at, "two").await;
    let image = |n: u32| root.join(format!("snapshots/{n}/layer/layer.erofs"));
    for n in [1, 2] {
        assert!(verity::is_enabled(&image(n)).unwrap());
        let refused = fs::File::options().write(true).open(image(n)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    }
    let mounts = sn.view("v", Some("two"), Labels::new()).await.unwrap();
    within(&mounts, &at, |root| assert_eq!(fs::read(root.join("one")).unwrap(), b"one"));
    sn.remove("v").await.unwrap();

    // One that was put in its place is not mounted.
    sn.close().await.unwrap();
    let (copy, damaged) = (root.join("copy"), image(1));
    fs::copy(&damaged, &copy).unwrap();
    assert!(Command::new("chattr").args(["-i"]).arg(&damaged).status().unwrap().success());
    fs::rename(&copy, &damaged).unwrap();
    let err = sn.view("v", Some("two"), Labels::new()).await.unwrap_err();
    assert!(err.is_failed_precondition() && err.message().contains("fs-verity"), "{err}");
    drop(sn);
    // Without being asked to, it is.
    let sn = open(false, records);
    sn.view("w", Some("two"), Labels::new()).await.unwrap();
    for name in ["w", "two", "one"] {
        sn.remove(name).await.unwrap();
    }
    sn.cleanup().await.unwrap();
    assert_eq!(fs::read_dir(root.join("snapshots")).unwrap().count(), 0);

    // A filesystem that cannot: the machine's memory.
    let config = ErofsConfig { verity: true, ..ErofsConfig::default() };
    let err = Erofs::open(at.path().join("root"), config, store()).map(drop).unwrap_err();
    assert!(err.is_unimplemented(), "{err}");
}
