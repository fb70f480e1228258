//! What the suites cannot see of records: events, and states that no client comes to.

use gantry_core::{Any, Descriptor, Digest};
use gantry_errdefs::Class;
use gantry_metadata::{Container, Event, Image, ImageDelete, ImageUpdate, Sandbox};

use crate::support::{MANIFEST, World, container, ctx, fails, list, map, resource};

fn any(value: &str) -> Any {
    Any { type_url: "t".to_owned(), value: value.as_bytes().to_vec() }
}

#[tokio::test]
async fn a_new_container_is_told_with_its_runtime() {
    let w = World::new();
    let mut c = container("c1");
    c.labels = map(&[("a", "1"), ("gone", "")]);
    c.image = "img".into();
    c.runtime.options = Some(any("options"));
    c.sandbox_id = "pod".into();
    let made = w.db.containers().create(&ctx("default"), c.clone()).await.unwrap();
    assert_eq!((made.labels, made.sandbox_id), (map(&[("a", "1")]), "pod".to_owned()));
    let event = Event::ContainerCreate {
        id: "c1".into(),
        image: "img".into(),
        runtime_name: c.runtime.name,
        runtime_options: Some(any("options")),
    };
    assert_eq!(w.events(), [("default".to_owned(), event)]);
    // What is refused is not told.
    fails(w.db.containers().create(&ctx("default"), container("c1")).await, Class::AlreadyExists);
    let mut nameless = container("c2");
    nameless.extensions.insert(String::new(), any(""));
    fails(w.db.containers().create(&ctx("default"), nameless).await, Class::InvalidArgument);
    assert_eq!(w.topics(), Vec::<String>::new());
}

#[tokio::test]
async fn changes_are_told_where_they_are_made() {
    let w = World::new();
    let (a, b) = (ctx("a"), ctx("b"));
    for ctx in [&a, &b] {
        w.db.containers().create(ctx, container("c1")).await.unwrap();
    }
    w.db.containers().update(&b, container("c1"), &list(&["image"])).await.unwrap();
    w.db.containers().delete(&a, "c1").await.unwrap();
    let image = Image::new("x", Descriptor::new(MANIFEST, Digest::of(b"1"), 3));
    w.db.images().create(&a, image, None).await.unwrap();
    let labels = map(&[("k", "v")]);
    let update = ImageUpdate { name: "x".into(), labels: labels.clone(), target: None };
    w.db.images().update(&a, update, &list(&["labels.k"]), None).await.unwrap();
    w.db.images().delete(&a, "x", ImageDelete::default()).await.unwrap();
    // Leases and sandboxes have no events of their own here.
    w.db.leases().create(&a, "l", map(&[])).await.unwrap();
    w.db.leases().delete(&a, "l", true).await.unwrap();
    w.db.sandboxes().create(&a, Sandbox::new("pod")).await.unwrap();
    w.db.namespaces().create("n", labels.clone()).await.unwrap();
    fails(w.db.namespaces().create("n", labels.clone()).await, Class::AlreadyExists);
    w.db.namespaces().update("n", labels, &[]).await.unwrap();
    w.db.namespaces().delete("n").await.unwrap();
    let want = [
        "a /containers/create",
        "b /containers/create",
        "b /containers/update",
        "a /containers/delete",
        "a /images/create",
        "a /images/update",
        "a /images/delete",
        "n /namespaces/create",
        "n /namespaces/update",
        "n /namespaces/delete",
    ];
    assert_eq!(w.topics(), want);
}

#[tokio::test]
async fn masks_lead_to_no_state_that_may_not_be() {
    let w = World::new();
    let (ctx, containers) = (ctx("default"), w.db.containers());
    let mut c = container("c1");
    c.extensions.insert("e".into(), any("1"));
    containers.create(&ctx, c).await.unwrap();
    let mut update = Container { snapshot_key: "key".into(), ..container("c1") };
    let apply = async |update: &Container, paths: &[&str]| {
        containers.update(&ctx, update.clone(), &list(paths)).await
    };
    // A key without a snapshotter, and keys without a name.
    for bad in ["snapshotkey", "labels.", "extensions."] {
        fails(apply(&update, &[bad]).await, Class::InvalidArgument);
    }
    // An extension that the update does not have goes.
    update.snapshot_key.clear();
    assert!(apply(&update, &["extensions.e"]).await.unwrap().extensions.is_empty());
    fails(
        w.db.namespaces().update("n", map(&[]), &list(&["labels."])).await,
        Class::InvalidArgument,
    );

    let images = w.db.images();
    let mut image = Image::new("x", Descriptor::new(MANIFEST, Digest::of(b"1"), 3));
    image.target.annotations = map(&[("m", "1"), ("n", "1")]);
    images.create(&ctx, image, None).await.unwrap();
    let none = ImageUpdate { name: "x".into(), ..ImageUpdate::default() };
    fails(images.update(&ctx, none.clone(), &[], None).await, Class::InvalidArgument);
    fails(images.update(&ctx, none, &list(&["target.size"]), None).await, Class::InvalidArgument);
    let mut target = Descriptor::new(MANIFEST, Digest::of(b"2"), 3);
    target.annotations = map(&[("n", "2")]);
    let paths = list(&["annotations.m", "annotations.n"]);
    let update = ImageUpdate { name: "x".into(), target: Some(target), ..ImageUpdate::default() };
    let target = images.update(&ctx, update, &paths, None).await.unwrap().target;
    assert_eq!((target.annotations, target.digest), (map(&[("n", "2")]), Digest::of(b"1")));

    w.db.sandboxes().create(&ctx, Sandbox::new("pod")).await.unwrap();
    let update = w.db.sandboxes().update(&ctx, Sandbox::new("pod"), &list(&["sandboxer"])).await;
    fails(update, Class::InvalidArgument);
}

#[tokio::test]
async fn members_of_leases_are_listed_in_one_order() {
    let w = World::new();
    let (ctx, leases) = (ctx("default"), w.db.leases());
    leases.create(&ctx, "l", map(&[])).await.unwrap();
    let members = [
        resource("content", Digest::of(b"x").as_str()),
        resource("images", "docker.io/library/x:1"),
        resource("ingests", "layer-x"),
        resource("snapshots/overlayfs", "sha256:chain"),
    ];
    for member in members.iter().rev() {
        leases.add_resource(&ctx, "l", member.clone()).await.unwrap();
    }
    assert_eq!(leases.resources(&ctx, "l").await.unwrap(), members);
    for nameless in [resource("images", ""), resource("snapshots/", "k")] {
        fails(leases.add_resource(&ctx, "l", nameless).await, Class::InvalidArgument);
    }
}

#[tokio::test]
async fn a_full_namespace_is_refused_by_all_it_has() {
    let w = World::new();
    let (namespaces, ctx) = (w.db.namespaces(), ctx("a"));
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
    // What does not keep it goes with it.
    assert_eq!(w.db.leases().list(&ctx, &[]).await.unwrap(), []);
    fails(w.db.sandboxes().get(&ctx, "pod").await, Class::NotFound);
}
