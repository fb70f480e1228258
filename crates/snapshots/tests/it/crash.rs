//! What a crash leaves at each step, and that the next start mends it.

use std::fs;

use gantry_core::Labels;
use gantry_snapshots::{CommitOptions, Kind, Snapshotter, testsuite};

use crate::{PATIENCE_STEP, PATIENCE_STEPS, Place, names};

#[tokio::test]
async fn before_the_record_of_a_prepare() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    drop(sn);
    fs::create_dir_all(place.root().join("snapshots/2/work")).unwrap();
    fs::create_dir_all(place.root().join("snapshots/7/fs/full/of/things")).unwrap();
    let sn = place.overlay();
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1"]);
    sn.prepare("a", Some("one"), Labels::new()).await.unwrap();
    assert_eq!(names(&sn).await, ["a", "one"]);
}

#[tokio::test]
async fn power_cut_after_a_prepare() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    let mounts = sn.prepare("a", Some("one"), Labels::new()).await.unwrap();
    sn.prepare("b", None, Labels::new()).await.unwrap();
    sn.view("v", Some("one"), Labels::new()).await.unwrap();
    drop(sn);
    // The record is durable by then, the directory may not be, or only half.
    fs::remove_dir_all(place.root().join("snapshots/2")).unwrap();
    fs::remove_dir_all(place.root().join("snapshots/3/fs")).unwrap();
    let sn = place.overlay();
    assert_eq!(sn.mounts("a").await.unwrap(), mounts);
    for made in ["2/fs", "2/work", "3/fs", "3/work"] {
        assert!(place.root().join("snapshots").join(made).is_dir(), "{made}");
    }
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1", "2", "3"]);
}

#[tokio::test]
async fn between_record_and_directory_of_a_remove() {
    let place = Place::new();
    drop(place.overlay());
    // One crash before the rename, one half way through the deletion.
    fs::create_dir_all(place.root().join("snapshots/1/fs/full")).unwrap();
    // Whole at once: the first one's deleting thread may still be at work.
    fs::create_dir_all(place.root().join("half/fs/full")).unwrap();
    fs::rename(place.root().join("half"), place.root().join("snapshots/.removed-2")).unwrap();
    let sn = place.overlay();
    place.no_dirs_soon().await;
    assert!(names(&sn).await.is_empty());
}

#[tokio::test]
async fn between_sync_and_record_of_a_commit() {
    let place = Place::new();
    let sn = place.overlay();
    let mounts = sn.prepare("a", None, Labels::new()).await.unwrap();
    let upper = std::path::Path::new(&mounts[0].source);
    fs::write(upper.join("file"), "x").unwrap();
    drop(sn);
    let sn = place.overlay();
    assert_eq!(sn.stat("a").await.unwrap().kind, Kind::Active);
    sn.commit("one", "a", CommitOptions::default()).await.unwrap();
    assert!(upper.join("file").exists());
    drop(sn);
    let sn = place.overlay();
    assert_eq!(sn.stat("one").await.unwrap().kind, Kind::Committed);
    assert!(upper.join("file").exists());
}

#[tokio::test]
async fn committed_without_directory_is_forgotten_with_what_is_on_top() {
    let place = Place::new();
    let sn = place.overlay();
    // 1 <- 2 <- 3, 1 <- 4, and 5 <- 6 <- active 7.
    for (name, parent) in [
        ("1", None),
        ("2", Some("1")),
        ("3", Some("2")),
        ("4", Some("1")),
        ("5", None),
        ("6", Some("5")),
    ] {
        testsuite::layer(&sn, name, parent).await.unwrap();
    }
    sn.prepare("7", Some("6"), Labels::new()).await.unwrap();
    drop(sn);
    for lost in ["2", "5"] {
        fs::remove_dir_all(place.root().join("snapshots").join(lost)).unwrap();
    }
    let sn = place.overlay();
    assert_eq!(names(&sn).await, ["1", "4", "5", "6", "7"]);
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1", "4", "6", "7"]);
    testsuite::layer(&sn, "2", Some("1")).await.unwrap();
    sn.remove("7").await.unwrap();
    drop(sn);
    assert_eq!(names(&place.overlay()).await, ["1", "2", "4"]);
}

#[tokio::test]
async fn missing_filesystem_changes_nothing() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    drop(sn);
    let snapshots = place.root().join("snapshots");
    fs::rename(&snapshots, place.root().join("elsewhere")).unwrap();
    for _ in 0..2 {
        let store = std::sync::Arc::clone(&place.store);
        let opened = gantry_snapshots::Overlayfs::open(place.root(), Default::default(), store);
        assert!(opened.err().unwrap().is_data_loss());
    }
    fs::rename(place.root().join("elsewhere"), &snapshots).unwrap();
    assert_eq!(names(&place.overlay()).await, ["one"]);
}

#[tokio::test]
async fn numbers_are_not_used_twice() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    sn.view("v", Some("one"), Labels::new()).await.unwrap();
    drop(sn);
    let sn = place.overlay();
    sn.prepare("a", None, Labels::new()).await.unwrap();
    // 2 is the view's, though it has no directory.
    assert_eq!(place.dirs(), ["1", "3"]);
}

#[tokio::test]
async fn strangers_are_left_alone() {
    let place = Place::new();
    drop(place.overlay());
    fs::create_dir(place.root().join("snapshots/lost+found")).unwrap();
    let sn = place.overlay();
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["lost+found"]);
}

#[tokio::test]
async fn snapshots_of_another_daemon_are_left_alone() {
    let place = Place::new();
    let theirs = ["3/fs/data", "3/work", "12/fs"];
    for dir in theirs {
        fs::create_dir_all(place.root().join("snapshots").join(dir)).unwrap();
    }
    for round in 0..2 {
        let sn = place.overlay();
        testsuite::layer(&sn, &format!("ours-{round}"), None).await.unwrap();
        sn.cleanup().await.unwrap();
    }
    fs::create_dir(place.root().join("snapshots/99")).unwrap();
    let sn = place.overlay();
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["12", "13", "14", "3"]);
    assert!(place.root().join("snapshots/3/fs/data").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_calls_leave_all_or_nothing() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    for i in 0..40_u32 {
        let (key, name) = (format!("k{i}"), format!("c{i}"));
        let work = async {
            sn.prepare(&key, Some("one"), Labels::new()).await?;
            sn.commit(&name, &key, CommitOptions::default()).await?;
            sn.remove(&name).await
        };
        let _ =
            tokio::time::timeout(std::time::Duration::from_micros(u64::from(i) * 50), work).await;
    }
    // Whatever was begun runs to its end.
    for _ in 0..PATIENCE_STEPS {
        tokio::time::sleep(PATIENCE_STEP).await;
        sn.cleanup().await.unwrap();
        if place.dirs().len() == names(&sn).await.len() {
            return;
        }
    }
    panic!("directories {:?}, records {:?}", place.dirs(), names(&sn).await);
}
