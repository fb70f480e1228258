//! Hard limits by project quotas. Few kernels that tests run on have them, so the test boots the
//! small machine, which runs this same program on filesystems of its own.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use gantry_core::Labels;
use gantry_mount::{UnmountFlags, mount_all, unmount_all};
use gantry_snapshots::{CommitOptions, Overlayfs, Snapshotter, label, testsuite};
use gantry_store::MemStore;
use gantry_testkit::{Vm, system_program};

use crate::Place;

/// Where the machine has its filesystems, separated by colons.
const FILESYSTEMS: &str = "GANTRY_QUOTA_FILESYSTEMS";

const MEBIBYTE: usize = 1 << 20;

/// A direct write once passed its limit on xfs, which nobody has seen again.
const DIRECT_ROUNDS: usize = 4;

const SCRIPT: &str = r"
set -e
mkdir -p /xfs /ext4 /tmp
truncate -s 320M /xfs.img
/opt/mkfs.xfs -q /xfs.img
mount -t xfs -o loop,prjquota /xfs.img /xfs
truncate -s 64M /ext4.img
/opt/mke2fs -q -F -t ext4 -O quota,project -E quotatype=prjquota /ext4.img
mount -t ext4 -o loop,prjquota /ext4.img /ext4
GANTRY_QUOTA_FILESYSTEMS=/xfs:/ext4 /bin/it --ignored --exact --nocapture quota::in_the_machine
";

#[test]
fn root_vm_quota_is_hard_on_xfs_and_ext4() {
    let this = std::env::current_exe().unwrap();
    let vm = Vm::new()
        .only_modules(&["overlay", "loop", "xfs", "quota_v2"])
        .program(&this, "/bin/it")
        .program(&system_program("mkfs.xfs"), "/opt/mkfs.xfs")
        .program(&system_program("mke2fs"), "/opt/mke2fs")
        .file("/etc/mke2fs.conf", b"[defaults]\n\tbase_features = has_journal,extent\n");
    vm.run(SCRIPT).assert_ok();
}

/// ext4 speaks of quota, xfs of space; neither filesystem is full.
fn is_over(err: &std::io::Error) -> bool {
    matches!(err.kind(), ErrorKind::QuotaExceeded | ErrorKind::StorageFull)
}

fn limited(bytes: usize) -> Labels {
    Labels::from([(label::QUOTA_SIZE.to_owned(), bytes.to_string())])
}

/// Writes `mebibytes` to the snapshot through its mounts.
async fn write(
    sn: &dyn Snapshotter,
    key: &str,
    at: &Path,
    mebibytes: usize,
) -> std::io::Result<()> {
    let mounts = sn.mounts(key).await.unwrap();
    mount_all(&mounts, at).unwrap();
    // Through a directory and over a file from below, which overlayfs copies by its work directory.
    let written = fs::create_dir_all(at.join("dir/sub"))
        .and_then(|()| fs::write(at.join("dir/sub/file"), vec![1; mebibytes * MEBIBYTE]))
        .and_then(|()| fs::File::options().append(true).open(at.join("base")))
        .and_then(|file| file.set_len(1));
    if written.is_err() {
        // overlayfs mounts a layer read-only when there is no room for its own directory.
        fs::remove_file(at.join("dir/sub/file")).unwrap();
    }
    unmount_all(at, UnmountFlags::default()).unwrap();
    written
}

/// Writes past the page cache to a snapshot limited to 1 MiB, as much as it takes in pieces of
/// `piece` bytes; returns the bytes that its file then has on disk.
async fn write_directly(sn: &dyn Snapshotter, parent: &str, at: &Path, piece: usize) -> u64 {
    const ALIGNMENT: usize = 4096;
    sn.prepare("direct", Some(parent), limited(MEBIBYTE)).await.unwrap();
    let mounts = sn.mounts("direct").await.unwrap();
    mount_all(&mounts, at).unwrap();
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let mut file = fs::File::options()
        .write(true)
        .create(true)
        .custom_flags(direct)
        .open(at.join("f"))
        .unwrap();
    let buffer = vec![1; piece + ALIGNMENT];
    let aligned = buffer.as_ptr().align_offset(ALIGNMENT);
    let refused = loop {
        if let Err(err) = file.write_all(&buffer[aligned..aligned + piece]) {
            break err;
        }
        assert!(file.metadata().unwrap().len() <= 4 * MEBIBYTE as u64, "nothing holds it");
    };
    assert!(is_over(&refused), "{refused}");
    let taken = file.metadata().unwrap().blocks() * 512;
    drop(file);
    fs::remove_file(at.join("f")).unwrap();
    unmount_all(at, UnmountFlags::default()).unwrap();
    sn.remove("direct").await.unwrap();
    sn.cleanup().await.unwrap();
    taken
}

async fn checks_on(filesystem: &Path, at: &Path) {
    let store = Arc::new(MemStore::new());
    let sn = Overlayfs::open(filesystem.join("root"), Default::default(), store).unwrap();
    let mounts = sn.prepare("base-key", None, Labels::new()).await.unwrap();
    fs::write(Path::new(&mounts[0].source).join("base"), vec![1; 2 * MEBIBYTE]).unwrap();
    sn.commit("base", "base-key", CommitOptions::default()).await.unwrap();
    testsuite::layer(&sn, "top", Some("base")).await.unwrap();

    for parent in ["base", "top"] {
        sn.prepare("a", Some(parent), limited(8 * MEBIBYTE)).await.unwrap();
        let refused = write(&sn, "a", at, 12).await.unwrap_err();
        assert!(is_over(&refused), "{refused}");
        write(&sn, "a", at, 4).await.unwrap();
        for piece in [2 * MEBIBYTE, MEBIBYTE, MEBIBYTE / 4].repeat(DIRECT_ROUNDS) {
            let taken = write_directly(&sn, parent, at, piece).await;
            assert!(taken <= MEBIBYTE as u64, "{taken} bytes, in pieces of {piece}");
        }
        // Nobody else is limited by it.
        sn.prepare("b", Some(parent), Labels::new()).await.unwrap();
        write(&sn, "b", at, 12).await.unwrap();
        for key in ["a", "b"] {
            sn.remove(key).await.unwrap();
        }
        sn.cleanup().await.unwrap();
    }
}

#[tokio::test]
#[ignore = "run in the machine by root_vm_quota_is_hard_on_xfs_and_ext4"]
async fn in_the_machine() {
    let filesystems = std::env::var(FILESYSTEMS).expect("only the machine runs this");
    let at = tempfile::tempdir().unwrap();
    for filesystem in filesystems.split(':') {
        println!("quota on {filesystem}");
        checks_on(Path::new(filesystem), at.path()).await;
    }
}

#[tokio::test]
async fn root_a_limit_that_cannot_be_kept_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let sn = place.overlay();
    for bad in ["", "x", "-1", "1024"] {
        let labels = Labels::from([(label::QUOTA_SIZE.to_owned(), bad.to_owned())]);
        let err = sn.prepare("a", None, labels).await.unwrap_err();
        assert!(err.is_invalid_argument(), "{bad:?}: {err}");
    }
    // A filesystem that keeps none.
    let disk = crate::filesystem::Filesystem::new("ext4", &["mkfs.ext4", "-q", "-F"], 16, &[]);
    let store = Arc::new(MemStore::new());
    let sn = Overlayfs::open(disk.path().join("root"), Default::default(), store).unwrap();
    let err = sn.prepare("a", None, limited(MEBIBYTE)).await.unwrap_err();
    assert!(err.is_failed_precondition() && err.message().contains("prjquota"), "{err}");
    sn.cleanup().await.unwrap();
    assert_eq!(fs::read_dir(disk.path().join("root/snapshots")).unwrap().count(), 0);
}
