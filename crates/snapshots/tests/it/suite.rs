//! Every snapshotter against the conformance suite.

use std::path::Path;

use gantry_snapshots::Snapshotter;
use gantry_snapshots::testsuite::{self, Counts};

use crate::{Place, names};

async fn leaves_nothing(place: &Place, sn: &dyn Snapshotter) {
    leaves_nothing_at(place.root(), sn).await;
}

pub(crate) async fn leaves_nothing_at(root: &Path, sn: &dyn Snapshotter) {
    assert!(names(sn).await.is_empty());
    sn.cleanup().await.unwrap();
    let left: Vec<_> = std::fs::read_dir(root.join("snapshots")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
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
    testsuite::trees(&sn, target.path(), Counts::Files).await;
    testsuite::rebase(&sn, target.path()).await;
    leaves_nothing(&place, &sn).await;
}

#[tokio::test]
async fn root_native_trees() {
    let (place, target) = (Place::new(), tempfile::tempdir().unwrap());
    let sn = place.native();
    testsuite::trees(&sn, target.path(), Counts::FilesOfAll).await;
    leaves_nothing(&place, &sn).await;
}
