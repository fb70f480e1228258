//! The conformance suites, over every database and every backend.

use std::sync::Arc;

use gantry_metadata::SharingPolicy;
use gantry_metadata::testsuite::{self, Release};
use gantry_store::RedbStore;

use crate::support::World;

async fn on_redb() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path().join("meta.redb"), &Default::default()).unwrap();
    World::open(dir, Arc::new(store), SharingPolicy::Shared)
}

#[tokio::test]
async fn metadata_in_memory() {
    testsuite::metadata(&World::new().db, Release::Current).await;
}

#[tokio::test]
async fn metadata_on_redb() {
    testsuite::metadata(&on_redb().await.db, Release::Current).await;
}

#[tokio::test]
async fn metadata_with_isolated_content() {
    let world = World::with_policy(SharingPolicy::Isolated);
    testsuite::metadata(&world.db, Release::Current).await;
}

#[tokio::test]
async fn leases_in_memory() {
    testsuite::leases(&World::new().db, Release::Current).await;
}

#[tokio::test]
async fn leases_on_redb() {
    testsuite::leases(&on_redb().await.db, Release::Current).await;
}
