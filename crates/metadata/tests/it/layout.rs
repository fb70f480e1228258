//! The on-disk layout, pinned: a change here needs a migration.

use gantry_core::Digest;
use gantry_metadata::Sandbox;
use gantry_store::{Key, KvRead};

use crate::support::{SN, World, container, ctx, map, resource};

#[tokio::test]
async fn keys_are_as_documented() {
    let w = World::new();
    let ctx = ctx("ns");
    let leased = ctx.clone().with_lease("l/1");
    w.db.leases().create(&ctx, "l/1", map(&[])).await.unwrap();
    let digest = w.blob(&leased, "hello", &[]).await;
    w.image(&ctx, "docker.io/library/x:1", &digest).await;
    w.db.containers().create(&ctx, container("c1")).await.unwrap();
    w.db.sandboxes().create(&ctx, Sandbox::new("pod")).await.unwrap();
    w.layer(&leased, "base", None).await;
    let sn = w.db.snapshotter(SN).unwrap();
    sn.prepare(&ctx, "web", Some("base"), map(&[])).await.unwrap();
    sn.prepare(&ctx, "old", None, map(&[])).await.unwrap();
    sn.remove(&ctx, "old").await.unwrap();
    let gone = w.blob(&ctx, "gone", &[]).await;
    w.db.content().delete(&ctx, &gone).await.unwrap();
    w.db.leases().add_resource(&ctx, "l/1", resource("images", "i")).await.unwrap();

    let mut keys = Vec::new();
    for (key, _) in w.store.view().unwrap().range(&Key::new().str("meta1")).unwrap() {
        keys.push(Key::str_parts(&key).unwrap().join(" "));
    }
    let hello = Digest::of(b"hello");
    let want = [
        "meta1 backend-snapshot native ns/4/base ns base".to_owned(),
        "meta1 backend-snapshot native ns/5/web ns web".to_owned(),
        format!("meta1 blob ns {hello}"),
        format!("meta1 blob-bytes {gone} 8"),
        format!("meta1 blob-bytes {hello} 2"),
        format!("meta1 blob-namespace {hello} ns"),
        "meta1 container ns c1".to_owned(),
        "meta1 image ns docker.io/library/x:1".to_owned(),
        "meta1 lease ns l/1".to_owned(),
        format!("meta1 lease-resource ns l/1 content {hello}"),
        "meta1 lease-resource ns l/1 images i".to_owned(),
        "meta1 lease-resource ns l/1 snapshots/native base".to_owned(),
        "meta1 namespace ns".to_owned(),
        "meta1 sandbox ns pod".to_owned(),
        "meta1 sequence".to_owned(),
        "meta1 snapshot ns native base".to_owned(),
        "meta1 snapshot ns native web".to_owned(),
        "meta1 snapshot-child ns native base web".to_owned(),
        format!("meta1 trash-blob {gone}"),
        "meta1 trash-snapshot native ns/6/old".to_owned(),
    ];
    assert_eq!(keys, want);
}
