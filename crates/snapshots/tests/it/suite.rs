//! Every snapshotter against the conformance suite.

use gantry_snapshots::{Snapshotter, testsuite};

use crate::{Place, names};

async fn leaves_nothing(place: &Place, sn: &dyn Snapshotter) {
    assert!(names(sn).await.is_empty());
    sn.cleanup().await.unwrap();
    assert!(place.dirs().is_empty(), "{:?}", place.dirs());
}

#[tokio::test]
async fn overlayfs_records() {
    let place = Place::new();
    let sn = place.overlay();
    testsuite::records(&sn).await;
    leaves_nothing(&place, &sn).await;
}

#[tokio::test]
async fn native_records() {
    let place = Place::new();
    let sn = place.native();
    testsuite::records(&sn).await;
    leaves_nothing(&place, &sn).await;
}

#[tokio::test]
async fn root_overlayfs_trees() {
    let (place, target) = (Place::new(), tempfile::tempdir().unwrap());
    let sn = place.overlay();
    testsuite::trees(&sn, target.path()).await;
    testsuite::rebase(&sn, target.path()).await;
    leaves_nothing(&place, &sn).await;
}

#[tokio::test]
async fn root_native_trees() {
    let (place, target) = (Place::new(), tempfile::tempdir().unwrap());
    let sn = place.native();
    testsuite::trees(&sn, target.path()).await;
    leaves_nothing(&place, &sn).await;
}
