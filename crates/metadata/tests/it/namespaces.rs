//! Namespaces.

use gantry_errdefs::Class;
use gantry_metadata::{ImageDelete, Sandbox};

use crate::support::{World, container, ctx, fails, list, map};

#[tokio::test]
async fn get_never_fails_and_objects_make_namespaces() {
    let w = World::new();
    let namespaces = w.db.namespaces();
    assert_eq!(namespaces.get("nobody").await.unwrap().labels, map(&[]));
    fails(namespaces.get("a/b").await, Class::InvalidArgument);
    assert_eq!(namespaces.list().await.unwrap(), []);
    w.db.containers().create(&ctx("k8s.io"), container("c")).await.unwrap();
    let names: Vec<_> = namespaces.list().await.unwrap().into_iter().map(|n| n.name).collect();
    assert_eq!(names, ["k8s.io"]);
}

#[tokio::test]
async fn labels_change_by_key() {
    let w = World::new();
    let namespaces = w.db.namespaces();
    namespaces.create("a", map(&[("x", "1"), ("y", "1")])).await.unwrap();
    fails(namespaces.create("a", map(&[])).await, Class::AlreadyExists);
    fails(namespaces.create("-", map(&[])).await, Class::InvalidArgument);
    let update = async |paths: &[&str]| {
        namespaces.update("a", map(&[("x", ""), ("z", "1")]), &list(paths)).await
    };
    let info = update(&["labels.x"]).await.unwrap();
    assert_eq!(info.labels, map(&[("y", "1")]));
    for bad in ["labels", "name", "labels."] {
        fails(update(&[bad]).await, Class::InvalidArgument);
    }
    assert_eq!(update(&[]).await.unwrap().labels, map(&[("z", "1")]));
    namespaces.update("new", map(&[("k", "v")]), &list(&["labels.k"])).await.unwrap();
    assert_eq!(namespaces.get("new").await.unwrap().labels, map(&[("k", "v")]));
    assert_eq!(
        w.topics(),
        [
            "a /namespaces/create",
            "a /namespaces/update",
            "a /namespaces/update",
            "new /namespaces/update"
        ]
    );
}

#[tokio::test]
async fn delete_wants_them_empty() {
    let w = World::new();
    let (namespaces, ctx) = (w.db.namespaces(), ctx("a"));
    fails(namespaces.delete("a").await, Class::NotFound);
    let digest = w.blob(&ctx, "data", &[]).await;
    w.image(&ctx, "img", &digest).await;
    w.db.containers().create(&ctx, container("c")).await.unwrap();
    w.layer(&ctx, "s", None).await;
    let err = fails(namespaces.delete("a").await, Class::FailedPrecondition);
    assert_eq!(
        err.message(),
        "namespace \"a\" must be empty, but it still has images, blobs, containers, \
         snapshots on \"native\" snapshotter"
    );
    w.db.leases().create(&ctx, "l", map(&[])).await.unwrap();
    w.db.sandboxes().create(&ctx, Sandbox::new("pod")).await.unwrap();
    w.db.containers().delete(&ctx, "c").await.unwrap();
    w.db.snapshotter("native").unwrap().remove(&ctx, "s").await.unwrap();
    w.db.images().delete(&ctx, "img", ImageDelete::default()).await.unwrap();
    let err = fails(namespaces.delete("a").await, Class::FailedPrecondition);
    assert!(err.message().ends_with("still has blobs"), "{err}");
    w.db.content().delete(&ctx, &digest).await.unwrap();
    namespaces.delete("a").await.unwrap();
    assert_eq!(namespaces.list().await.unwrap(), []);
    assert_eq!(w.db.leases().list(&ctx, &[]).await.unwrap(), []);
    fails(w.db.sandboxes().get(&ctx, "pod").await, Class::NotFound);
    assert_eq!(w.topics().last().unwrap(), "a /namespaces/delete");
}
