//! btrfs, erofs and blockfile on filesystems of their own, against the suite and in what only they
//! do.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_core::Labels;
use gantry_mount::{UnmountFlags, mount_all, mountinfo, unmount_all};
use gantry_snapshots::testsuite::{self, Counts};
use gantry_snapshots::{
    Blockfile, BlockfileConfig, Btrfs, BtrfsConfig, CommitOptions, Erofs, ErofsConfig, Snapshotter,
    Verdict, label,
};
use gantry_store::{MemStore, Store};
use tempfile::TempDir;

use crate::filesystem::{Filesystem, scratch};
use crate::suite::leaves_nothing_at;

pub(crate) fn store() -> Arc<dyn Store> {
    Arc::new(MemStore::new())
}

fn btrfs() -> Filesystem {
    Filesystem::new("btrfs", &["mkfs.btrfs", "-q", "-m", "single"], 512, &[])
}

fn open_btrfs(on: &Path, store: Arc<dyn Store>) -> Btrfs {
    Btrfs::open(on.join("root"), BtrfsConfig::default(), store).unwrap()
}

fn open_erofs(on: &Path, store: Arc<dyn Store>) -> Erofs {
    Erofs::open(on.join("root"), ErofsConfig::default(), store).unwrap()
}

fn open_blockfile(on: &Path, store: Arc<dyn Store>) -> Blockfile {
    let scratch_file = on.join("scratch-file");
    if !scratch_file.exists() {
        scratch(on);
    }
    let config = BlockfileConfig { scratch_file, ..BlockfileConfig::default() };
    Blockfile::open(on.join("root"), config, store).unwrap()
}

/// Works on what the mounts show.
pub(crate) fn within<T>(
    mounts: &[gantry_mount::Mount],
    at: &TempDir,
    work: impl FnOnce(&Path) -> T,
) -> T {
    mount_all(mounts, at.path()).unwrap();
    let done = work(at.path());
    unmount_all(at.path(), UnmountFlags::default()).unwrap();
    done
}

pub(crate) async fn commit(
    sn: &dyn Snapshotter,
    name: &str,
    parent: Option<&str>,
    at: &TempDir,
    file: &str,
) {
    let key = format!("{name} key");
    let mounts = sn.prepare(&key, parent, Labels::new()).await.unwrap();
    within(&mounts, at, |root| fs::write(root.join(file), file).unwrap());
    sn.commit(name, &key, CommitOptions::default()).await.unwrap();
}

pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let all = mountinfo().unwrap().into_iter().map(|m| m.mount_point);
    all.filter(|p| p.starts_with(dir) && p != dir).collect()
}

#[tokio::test]
async fn root_btrfs_suite() {
    let (disk, at) = (btrfs(), tempfile::tempdir().unwrap());
    let sn = open_btrfs(&disk.path(), store());
    testsuite::records(&sn).await;
    testsuite::trees(&sn, at.path(), Counts::Files).await;
    leaves_nothing_at(&disk.path().join("root"), &sn).await;
}

#[tokio::test]
async fn root_erofs_suite() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sn = open_erofs(dir.path(), store());
    testsuite::records(&sn).await;
    testsuite::trees(&sn, at.path(), Counts::ImageOnceCommitted).await;
    testsuite::rebase(&sn, at.path()).await;
    leaves_nothing_at(&dir.path().join("root"), &sn).await;
    assert!(mounts_below(dir.path()).is_empty());
}

#[tokio::test]
async fn root_blockfile_suite() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sn = open_blockfile(dir.path(), store());
    testsuite::records(&sn).await;
    testsuite::trees(&sn, at.path(), Counts::Image).await;
    leaves_nothing_at(&dir.path().join("root"), &sn).await;
}

#[tokio::test]
async fn root_btrfs_snapshots_are_subvolumes_mounted_by_number() {
    let (disk, at) = (btrfs(), tempfile::tempdir().unwrap());
    let sn = open_btrfs(&disk.path(), store());
    commit(&sn, "one", None, &at, "file").await;
    let mounts = sn.prepare("a", Some("one"), Labels::new()).await.unwrap();
    assert_eq!((mounts.len(), mounts[0].kind.as_str()), (1, "btrfs"));
    assert!(mounts[0].source.starts_with("/dev/loop"), "{mounts:?}");
    let number = gantry_sys::btrfs::subvolume_id(&disk.path().join("root/snapshots/2")).unwrap();
    assert_eq!(mounts[0].options, ["rw".to_owned(), format!("subvolid={number}")]);
    // A container with the right to makes subvolumes in its own.
    within(&mounts, &at, |root| {
        gantry_sys::btrfs::create(&root.join("nested")).unwrap();
        fs::write(root.join("nested/file"), "x").unwrap();
    });
    sn.remove("a").await.unwrap();
    sn.cleanup().await.unwrap();
    assert_eq!(fs::read_dir(disk.path().join("root/snapshots")).unwrap().count(), 1);
    // What a mount shows cannot be replaced under it.
    let view = sn.view("v", Some("one"), Labels::new()).await.unwrap();
    mount_all(&view, at.path()).unwrap();
    let upkeep = sn.upkeep().unwrap();
    let err = upkeep.remake("one").await.unwrap_err();
    assert!(err.is_failed_precondition() && err.message().contains("in use"), "{err}");
    unmount_all(at.path(), UnmountFlags::default()).unwrap();
    let remade = upkeep.remake("one").await.unwrap();
    within(&remade.mounts, &at, |root| fs::write(root.join("file"), "again").unwrap());
    upkeep.replace(remade).await.unwrap();
    let view = sn.mounts("v").await.unwrap();
    within(&view, &at, |root| assert_eq!(fs::read(root.join("file")).unwrap(), b"again"));
}

#[tokio::test]
async fn root_btrfs_is_refused_elsewhere() {
    let disk = Filesystem::new("ext4", &["mkfs.ext4", "-q", "-F"], 16, &[]);
    let opened = Btrfs::open(disk.path(), BtrfsConfig::default(), store());
    let err = opened.err().unwrap();
    assert!(err.is_failed_precondition() && err.message().contains("not on a btrfs"), "{err}");
}

#[tokio::test]
async fn root_erofs_layers_are_mounted_once_and_unmounted_with_their_snapshot() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let records = store();
    let sn = open_erofs(dir.path(), Arc::clone(&records));
    commit(&sn, "one", None, &at, "one").await;
    commit(&sn, "two", Some("one"), &at, "two").await;
    let of = |n: u32| dir.path().join(format!("root/snapshots/{n}"));
    sn.cleanup().await.unwrap();
    for n in [1, 2] {
        assert!(of(n).join("layer/layer.erofs").is_file());
        assert!(!of(n).join("fs").exists(), "the files are in the image");
    }
    let mounts = sn.prepare("a", Some("two"), Labels::new()).await.unwrap();
    let lower = format!("lowerdir={}:{}", of(2).join("mnt").display(), of(1).join("mnt").display());
    assert!(mounts[0].options.contains(&lower), "{mounts:?}");
    assert_eq!(mounts_below(dir.path()).len(), 2);
    assert_eq!(sn.mounts("a").await.unwrap(), mounts);
    assert_eq!(mounts_below(dir.path()).len(), 2, "each once");
    // Closed and opened again, as after a reboot: what is asked for is mounted again.
    sn.close().await.unwrap();
    assert!(mounts_below(dir.path()).is_empty());
    drop(sn);
    let sn = open_erofs(dir.path(), records);
    assert_eq!(sn.mounts("a").await.unwrap(), mounts);
    mount_all(&mounts, at.path()).unwrap();
    fs::write(at.path().join("new"), "new").unwrap();
    // An overlay in use goes on without them.
    sn.close().await.unwrap();
    assert_eq!(fs::read(at.path().join("one")).unwrap(), b"one");
    let err = sn.upkeep().unwrap().remake("one").await.unwrap_err();
    assert!(err.is_failed_precondition() && err.message().contains("in use"), "{err}");
    unmount_all(at.path(), UnmountFlags::default()).unwrap();
    for name in ["a", "two", "one"] {
        sn.remove(name).await.unwrap();
    }
    sn.cleanup().await.unwrap();
    assert!(mounts_below(dir.path()).is_empty());
    assert_eq!(fs::read_dir(dir.path().join("root/snapshots")).unwrap().count(), 0);
}

#[tokio::test]
async fn root_erofs_damage_is_noticed_and_made_again() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sn = open_erofs(dir.path(), store());
    commit(&sn, "one", None, &at, "one").await;
    commit(&sn, "two", Some("one"), &at, "two").await;
    let upkeep = sn.upkeep().unwrap();
    assert_eq!(upkeep.verify("one").await.unwrap(), Verdict::Whole);
    let image = dir.path().join("root/snapshots/1/layer/layer.erofs");
    fs::File::options().write(true).open(&image).unwrap().set_len(4096).unwrap();
    assert!(matches!(upkeep.verify("one").await.unwrap(), Verdict::Damaged(_)));
    let remade = upkeep.remake("one").await.unwrap();
    within(&remade.mounts, &at, |root| fs::write(root.join("one"), "again").unwrap());
    upkeep.replace(remade).await.unwrap();
    assert_eq!(upkeep.verify("one").await.unwrap(), Verdict::Whole);
    let view = sn.view("v", Some("two"), Labels::new()).await.unwrap();
    within(&view, &at, |root| {
        assert_eq!(fs::read(root.join("one")).unwrap(), b"again");
        assert_eq!(fs::read(root.join("two")).unwrap(), b"two");
    });
    sn.close().await.unwrap();
}

#[tokio::test]
async fn root_erofs_layers_are_mapped_for_a_user_namespace() {
    use std::os::unix::fs::MetadataExt as _;
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sn = open_erofs(dir.path(), store());
    assert_eq!(sn.capabilities(), ["remap-ids", "only-remap-ids", "rebase"]);
    commit(&sn, "one", None, &at, "one").await;
    commit(&sn, "two", Some("one"), &at, "two").await;
    let maps = Labels::from([
        (label::UID_MAPPING.to_owned(), "0:100000:65536".to_owned()),
        (label::GID_MAPPING.to_owned(), "0:200000:65536".to_owned()),
    ]);
    for (key, parent) in [("a", "one"), ("b", "two")] {
        let mounts = sn.prepare(key, Some(parent), maps.clone()).await.unwrap();
        within(&mounts, &at, |root| {
            for name in [".", "one"] {
                let meta = fs::metadata(root.join(name)).unwrap();
                assert_eq!((meta.uid(), meta.gid()), (100_000, 200_000), "{name} on {parent}");
            }
        });
    }
    sn.close().await.unwrap();
}

#[tokio::test]
async fn root_blockfile_mounts_its_file_with_the_configured_options() {
    let (dir, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = BlockfileConfig {
        scratch_file: scratch(dir.path()),
        mount_options: vec!["noatime".to_owned()],
        ..BlockfileConfig::default()
    };
    let root = dir.path().join("root");
    let sn = Blockfile::open(&root, config.clone(), store()).unwrap();
    commit(&sn, "one", None, &at, "file").await;
    let mounts = sn.view("v", Some("one"), Labels::new()).await.unwrap();
    let image = root.join("snapshots/1/fs.img").display().to_string();
    assert_eq!((mounts[0].kind.as_str(), &mounts[0].source), ("ext4", &image));
    assert_eq!(mounts[0].options, ["noatime", "ro", "loop"]);
    // The container can fill its own file, and nothing else.
    let mounts = sn.prepare("a", Some("one"), Labels::new()).await.unwrap();
    within(&mounts, &at, |root| {
        let err = fs::write(root.join("big"), vec![1; 32 << 20]).unwrap_err();
        assert_eq!(err.kind(), std::io::ErrorKind::StorageFull);
    });
    drop(sn);
    // The copy of the scratch file serves when the file itself is gone.
    fs::remove_file(&config.scratch_file).unwrap();
    let gone = Blockfile::open(&root, config.clone(), store()).err().unwrap();
    assert!(gone.is_not_found() && gone.message().contains("scratch"), "{gone}");
    let kept = BlockfileConfig { recreate_scratch: false, ..config };
    let sn = Blockfile::open(&root, kept, store()).unwrap();
    let mounts = sn.prepare("b", None, Labels::new()).await.unwrap();
    within(&mounts, &at, |root| assert_eq!(fs::read_dir(root).unwrap().count(), 0));
}

#[test]
fn blockfile_wants_a_scratch_file() {
    let dir = tempfile::tempdir().unwrap();
    let open = |config| Blockfile::open(dir.path().join("root"), config, store()).err().unwrap();
    let err = open(BlockfileConfig::default());
    assert!(err.is_failed_precondition() && err.message().contains("scratch_file"), "{err}");
    let scratch_file = dir.path().join("empty");
    fs::File::create(&scratch_file).unwrap();
    let err = open(BlockfileConfig { scratch_file, ..BlockfileConfig::default() });
    assert!(err.message().contains("not a file with a filesystem"), "{err}");
}
