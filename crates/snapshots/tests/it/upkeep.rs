//! Trees that are damaged, made again, given up, or that nobody knows.

use std::fs;
use std::path::{Path, PathBuf};

use gantry_core::{Digest, Labels};
use gantry_mount::{Mount, UnmountFlags, mount, unmount_all};
use gantry_snapshots::{CommitOptions, Kind, LayerOrigin, Snapshotter, Upkeep, Verdict, testsuite};

use crate::{Place, names};

/// Where the files of an active snapshot are, for mounts that are a bind or an overlay.
fn upper(mounts: &[Mount]) -> PathBuf {
    let upper = mounts[0].options.iter().find_map(|o| o.strip_prefix("upperdir="));
    PathBuf::from(upper.unwrap_or(&mounts[0].source))
}

/// Commits a layer with one file whose content is its name, unpacked from a blob.
async fn layer(sn: &dyn Snapshotter, name: &str, parent: Option<&str>) -> PathBuf {
    let key = format!("extract {name}");
    let dir = upper(&sn.prepare(&key, parent, Labels::new()).await.unwrap());
    fs::write(dir.join(name), name).unwrap();
    let diff_id = Digest::of(name.as_bytes());
    let origin = Some(LayerOrigin { blob: Some(diff_id.clone()), diff_id });
    sn.commit(name, &key, CommitOptions { origin, ..Default::default() }).await.unwrap();
    dir
}

fn upkeep(sn: &dyn Snapshotter) -> &dyn Upkeep {
    sn.upkeep().expect("these snapshotters keep their trees")
}

fn damaged(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Damaged(how) => how,
        other => panic!("{other:?}"),
    }
}

/// A look at a layer shows what a view would, and leaves nothing.
async fn a_look_is_as_a_view(sn: &dyn Snapshotter) {
    testsuite::layer(sn, "one", None).await.unwrap();
    let dir = layer(sn, "two", Some("one")).await;
    for name in ["one", "two"] {
        let look = upkeep(sn).mounts(name).await.unwrap();
        assert_eq!(look, sn.view("view", Some(name), Labels::new()).await.unwrap());
        sn.remove("view").await.unwrap();
    }
    assert_eq!(names(sn).await, ["one", "two"]);
    assert!(upkeep(sn).strays().await.unwrap().is_empty());
    assert!(upkeep(sn).mounts("three").await.unwrap_err().is_not_found());
    sn.prepare("active", Some("two"), Labels::new()).await.unwrap();
    assert!(upkeep(sn).mounts("active").await.unwrap_err().is_failed_precondition());
    fs::write(dir.join("two"), "").unwrap();
    damaged(&upkeep(sn).verify("two").await.unwrap());
    assert!(upkeep(sn).mounts("two").await.unwrap_err().is_unavailable());
}

#[tokio::test]
async fn overlayfs_shows_a_layer_without_a_view() {
    a_look_is_as_a_view(&Place::new().overlay()).await;
}

#[tokio::test]
async fn native_shows_a_layer_without_a_view() {
    a_look_is_as_a_view(&Place::new().native()).await;
}

async fn a_damaged_layer_is_made_again(sn: &dyn Snapshotter) {
    layer(sn, "one", None).await;
    let dir = layer(sn, "two", Some("one")).await;
    layer(sn, "three", Some("two")).await;
    sn.prepare("child", Some("three"), Labels::new()).await.unwrap();
    for name in ["one", "two", "three"] {
        assert_eq!(upkeep(sn).verify(name).await.unwrap(), Verdict::Whole);
    }
    let layers = upkeep(sn).layers().await.unwrap();
    let order: Vec<&str> = layers.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(order, ["one", "two", "three"]);
    assert_eq!(layers[1].origin.as_ref().unwrap().diff_id, Digest::of(b"two"));

    fs::write(dir.join("two"), "").unwrap();
    let verdict = upkeep(sn).verify("two").await.unwrap();
    assert!(damaged(&verdict).contains("bytes, committed with"), "{verdict:?}");
    // Nothing new is put on it, and what is there stays.
    let err = sn.prepare("another", Some("three"), Labels::new()).await.unwrap_err();
    assert!(err.is_unavailable() && err.message().contains("unpacked again"), "{err}");
    assert_eq!(sn.stat("child").await.unwrap().kind, Kind::Active);

    let remade = upkeep(sn).remake("two").await.unwrap();
    fs::write(upper(&remade.mounts).join("two"), "two").unwrap();
    upkeep(sn).replace(remade).await.unwrap();
    assert_eq!(upkeep(sn).verify("two").await.unwrap(), Verdict::Whole);
    assert_eq!(fs::read(dir.join("two")).unwrap(), b"two");
    sn.prepare("another", Some("three"), Labels::new()).await.unwrap();
}

#[tokio::test]
async fn overlayfs_makes_a_damaged_layer_again() {
    a_damaged_layer_is_made_again(&Place::new().overlay()).await;
}

#[tokio::test]
async fn native_makes_a_damaged_layer_again() {
    a_damaged_layer_is_made_again(&Place::new().native()).await;
}

#[tokio::test]
async fn a_lost_directory_is_kept_for_its_blob() {
    let place = Place::new();
    let sn = place.overlay();
    let lost = layer(&sn, "one", None).await;
    layer(&sn, "two", Some("one")).await;
    sn.prepare("child", Some("two"), Labels::new()).await.unwrap();
    drop(sn);
    fs::remove_dir_all(lost.parent().unwrap()).unwrap();
    let sn = place.overlay();
    assert_eq!(names(&sn).await, ["child", "one", "two"]);
    sn.prepare("more", Some("two"), Labels::new()).await.unwrap_err();
    let err = upkeep(&sn).remake("two").await.unwrap_err();
    assert!(err.is_failed_precondition(), "the layer below comes first: {err}");
    let verdict = upkeep(&sn).verify("one").await.unwrap();
    assert!(damaged(&verdict).contains("No such file"), "{verdict:?}");
    let remade = upkeep(&sn).remake("one").await.unwrap();
    fs::write(upper(&remade.mounts).join("one"), "one").unwrap();
    upkeep(&sn).replace(remade).await.unwrap();
    sn.prepare("more", Some("two"), Labels::new()).await.unwrap();
    assert!(lost.join("one").exists());
}

#[tokio::test]
async fn what_cannot_be_made_again_goes_with_what_is_on_top() {
    let place = Place::new();
    let sn = place.overlay();
    let dir = layer(&sn, "one", None).await;
    layer(&sn, "two", Some("one")).await;
    sn.prepare("child", Some("two"), Labels::new()).await.unwrap();
    let give_up = || upkeep(&sn).give_up("one");
    assert!(give_up().await.unwrap_err().is_failed_precondition(), "it is whole");
    fs::remove_file(dir.join("one")).unwrap();
    damaged(&upkeep(&sn).verify("one").await.unwrap());
    let err = give_up().await.unwrap_err();
    assert!(err.is_failed_precondition() && err.message().contains("child"), "{err}");
    sn.remove("child").await.unwrap();
    let mut gone = give_up().await.unwrap();
    gone.sort();
    assert_eq!(gone, ["one", "two"]);
    assert!(names(&sn).await.is_empty());
    place.no_dirs_soon().await;
}

#[tokio::test]
async fn a_remake_that_is_discarded_or_cut_short_leaves_nothing() {
    let place = Place::new();
    let sn = place.overlay();
    layer(&sn, "one", None).await;
    let remade = upkeep(&sn).remake("one").await.unwrap();
    assert!(upkeep(&sn).strays().await.unwrap().is_empty(), "it is being made");
    upkeep(&sn).discard(remade).await;
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1"]);
    drop(upkeep(&sn).remake("one").await.unwrap());
    assert_eq!(place.dirs(), ["1", "3"]);
    drop(sn);
    let sn = place.overlay();
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1"]);
}

#[tokio::test]
async fn root_a_mounted_layer_is_not_replaced() {
    let place = Place::new();
    let sn = place.overlay();
    layer(&sn, "one", None).await;
    layer(&sn, "two", Some("one")).await;
    let at = place.root().join("mounted");
    fs::create_dir(&at).unwrap();
    let overlay = sn.prepare("child", Some("two"), Labels::new()).await.unwrap();
    let view = sn.view("view", Some("one"), Labels::new()).await.unwrap();
    for (mounts, name) in [(overlay, "two"), (view, "one")] {
        let remade = upkeep(&sn).remake(name).await.unwrap();
        mount(&mounts[0], &at).unwrap();
        let err = upkeep(&sn).replace(remade).await.unwrap_err();
        assert!(err.is_failed_precondition() && err.message().contains("in use"), "{err}");
        let err = upkeep(&sn).remake(name).await.unwrap_err();
        assert!(err.is_failed_precondition(), "{err}");
        unmount_all(&at, UnmountFlags::default()).unwrap();
    }
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1", "2", "3"]);
}

#[tokio::test]
async fn strays_are_told_and_removed_and_nothing_else() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    assert!(upkeep(&sn).strays().await.unwrap().is_empty());
    let stray = place.root().join("snapshots/77");
    fs::create_dir_all(stray.join("fs/full/of/things")).unwrap();
    let found = upkeep(&sn).strays().await.unwrap();
    let paths: Vec<&Path> = found.iter().map(|s| Path::new(&s.path)).collect();
    assert_eq!(paths, [&stray]);
    assert!(upkeep(&sn).remove_stray(&found[0]).await.unwrap());
    assert!(!upkeep(&sn).remove_stray(&found[0]).await.unwrap());
    sn.cleanup().await.unwrap();
    assert_eq!(place.dirs(), ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_made_is_no_stray() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::layer(&sn, "one", None).await.unwrap();
    let making = {
        let sn = sn.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                let key = format!("k{n}");
                sn.prepare(&key, Some("one"), Labels::new()).await.unwrap();
                assert!(Path::new(&upper(&sn.mounts(&key).await.unwrap())).exists());
                if n % 2 == 0 {
                    sn.remove(&key).await.unwrap();
                }
            }
        })
    };
    while !making.is_finished() {
        for stray in upkeep(&sn).strays().await.unwrap() {
            upkeep(&sn).remove_stray(&stray).await.unwrap();
        }
    }
    making.await.unwrap();
    assert_eq!(names(&sn).await.len(), 101);
    for n in (1..200).step_by(2) {
        let mounts = sn.mounts(&format!("k{n}")).await.unwrap();
        assert!(upper(&mounts).is_dir(), "{mounts:?}");
    }
}
