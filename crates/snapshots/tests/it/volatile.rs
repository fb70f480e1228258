//! Writable layers that nobody waits for when they are unmounted.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use gantry_core::Labels;
use gantry_mount::{UnmountFlags, mount_all, unmount_all};
use gantry_snapshots::{CommitOptions, Overlayfs, OverlayfsConfig, Snapshotter, label, testsuite};
use gantry_store::MemStore;

use crate::Place;
use crate::filesystem::Filesystem;

const MEBIBYTE: usize = 1 << 20;

/// What is written to each snapshot, in MiB.
const WRITTEN_MEBIBYTES: usize = 2;

fn asked() -> Labels {
    Labels::from([(label::VOLATILE.to_owned(), "true".to_owned())])
}

/// Mounts the snapshot, does `work` with it and unmounts it.
async fn used(sn: &dyn Snapshotter, key: &str, work: impl FnOnce(&Path)) {
    let at = tempfile::tempdir().unwrap();
    mount_all(&sn.mounts(key).await.unwrap(), at.path()).unwrap();
    work(at.path());
    unmount_all(at.path(), UnmountFlags::default()).unwrap();
}

/// Bytes that were written to the device of the filesystem at `path`.
fn device_bytes(path: &Path) -> u64 {
    const SECTORS_WRITTEN: usize = 6;
    let dev = fs::metadata(path).unwrap().dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
    let sectors = stat.split_whitespace().nth(SECTORS_WRITTEN).unwrap();
    sectors.parse::<u64>().unwrap() * 512
}

/// The snapshot looks as if it had been used before the machine was started.
fn as_of_another_boot(root: &Path, number: u32) {
    let note = root.join(format!("snapshots/{number}/volatile"));
    fs::remove_file(&note).unwrap();
    std::os::unix::fs::symlink("another", note).unwrap();
}

#[tokio::test]
async fn root_containers_that_end_together_sync_nothing() {
    const CONTAINERS: usize = 50;
    // Nothing is written by itself while the test runs.
    let disk = Filesystem::new("ext4", &["mkfs.ext4", "-q", "-F"], 512, &["commit=600"]);
    let store = Arc::new(MemStore::new());
    let sn = Overlayfs::open(disk.path().join("root"), OverlayfsConfig::default(), store).unwrap();
    testsuite::layer(&sn, "image", None).await.unwrap();
    let mut places = Vec::new();
    let run = async |key: String, labels: Labels| {
        let at = tempfile::tempdir().unwrap();
        mount_all(&sn.prepare(&key, Some("image"), labels).await.unwrap(), at.path()).unwrap();
        fs::write(at.path().join("file"), vec![7; WRITTEN_MEBIBYTES * MEBIBYTE]).unwrap();
        at
    };
    for n in 0..CONTAINERS {
        places.push(run(format!("c{n}"), asked()).await);
    }
    let before = device_bytes(&disk.path());
    std::thread::scope(|scope| {
        for at in &places {
            scope.spawn(|| unmount_all(at.path(), UnmountFlags::default()).unwrap());
        }
    });
    let written = device_bytes(&disk.path()) - before;
    for n in 0..CONTAINERS {
        sn.remove(&format!("c{n}")).await.unwrap();
    }
    assert!(written < MEBIBYTE as u64, "{written} bytes were written");

    // One that is not volatile has the filesystem synced.
    let at = run("plain".to_owned(), Labels::new()).await;
    let before = device_bytes(&disk.path());
    unmount_all(at.path(), UnmountFlags::default()).unwrap();
    let written = device_bytes(&disk.path()) - before;
    assert!(written >= (WRITTEN_MEBIBYTES * MEBIBYTE) as u64, "{written} bytes were written");
}

#[tokio::test]
async fn root_a_volatile_snapshot_is_mounted_again_and_committed() {
    let configured = OverlayfsConfig {
        mount_options: vec!["volatile".to_owned()],
        ..OverlayfsConfig::default()
    };
    for (config, labels) in [(OverlayfsConfig::default(), asked()), (configured, Labels::new())] {
        let place = Place::new();
        let sn = place.overlay_with(config);
        testsuite::layer(&sn, "image", None).await.unwrap();
        let mounts = sn.prepare("c", Some("image"), labels).await.unwrap();
        assert_eq!(mounts[0].options.iter().filter(|o| *o == "volatile").count(), 1);
        used(&sn, "c", |at| fs::write(at.join("a"), "1").unwrap()).await;
        assert!(place.root().join("snapshots/2/work/work/incompat/volatile").exists());
        used(&sn, "c", |at| {
            assert_eq!(fs::read(at.join("a")).unwrap(), b"1");
            fs::write(at.join("b"), "2").unwrap();
        })
        .await;
        // Views and snapshots that are no overlays have nothing to sync.
        let view = sn.view("v", Some("image"), asked()).await.unwrap();
        assert!(!view[0].options.contains(&"volatile".to_owned()));
        let base = sn.prepare("base", None, asked()).await.unwrap();
        assert!(!base[0].options.contains(&"volatile".to_owned()));

        sn.commit("done", "c", CommitOptions::default()).await.unwrap();
        assert!(!place.root().join("snapshots/2/volatile").is_symlink());
        sn.prepare("d", Some("done"), Labels::new()).await.unwrap();
        used(&sn, "d", |at| assert_eq!(fs::read(at.join("b")).unwrap(), b"2")).await;
    }
}

#[tokio::test]
async fn root_what_the_machine_may_have_lost_is_refused() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "image", None).await.unwrap();
    for key in ["used", "fresh", "written"] {
        sn.prepare(key, Some("image"), asked()).await.unwrap();
    }
    used(&sn, "used", |at| fs::write(at.join("a"), "1").unwrap()).await;
    fs::write(place.root().join("snapshots/4/fs/a"), "1").unwrap();
    (2..5).for_each(|number| as_of_another_boot(place.root(), number));
    for key in ["used", "written"] {
        let err = sn.mounts(key).await.unwrap_err();
        assert!(err.is_failed_precondition() && err.message().contains("volatile"), "{err}");
        let err = sn.commit("done", key, CommitOptions::default()).await.unwrap_err();
        assert!(err.is_failed_precondition(), "{err}");
        sn.remove(key).await.unwrap();
    }
    // Nothing was ever in it.
    used(&sn, "fresh", |at| fs::write(at.join("a"), "1").unwrap()).await;
    used(&sn, "fresh", |at| assert_eq!(fs::read(at.join("a")).unwrap(), b"1")).await;
}
