//! Images.

use std::time::{Duration, SystemTime};

use gantry_core::{Descriptor, Digest};
use gantry_errdefs::Class;
use gantry_metadata::{Image, ImageDelete, ImageUpdate};

use crate::support::{MANIFEST, World, ctx, fails, list, map, resource};

fn image(name: &str, data: &str) -> Image {
    Image::new(name, Descriptor::new(MANIFEST, Digest::of(data.as_bytes()), 3))
}

#[tokio::test]
async fn the_target_must_be_whole_but_need_not_exist() {
    let w = World::new();
    let (ctx, images) = (ctx("default"), w.db.images());
    for spoil in [
        |i: &mut Image| i.name.clear(),
        |i: &mut Image| i.target.size = 0,
        |i: &mut Image| i.target.size = -1,
        |i: &mut Image| i.target.media_type.clear(),
        |i: &mut Image| i.labels = map(&[("k", &"v".repeat(5000))]),
    ] {
        let mut bad = image("x", "1");
        spoil(&mut bad);
        fails(images.create(&ctx, bad, None).await, Class::InvalidArgument);
    }
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(77);
    let made = images.create(&ctx, image("x", "1"), Some(at)).await.unwrap();
    assert_eq!((made.created_at, made.updated_at), (at, at));
    fails(images.create(&ctx, image("x", "1"), None).await, Class::AlreadyExists);
    assert_eq!(images.get(&ctx, "x").await.unwrap(), made);
    fails(images.get(&ctx, "docker.io/library/x").await, Class::NotFound);
}

#[tokio::test]
async fn masks_change_what_they_name() {
    let w = World::new();
    let (ctx, images) = (ctx("default"), w.db.images());
    let mut first = image("x", "1");
    first.labels = map(&[("a", "1"), ("b", "1")]);
    first.target.annotations = map(&[("n", "1"), ("m", "1")]);
    images.create(&ctx, first.clone(), None).await.unwrap();
    let mut target = image("x", "2").target;
    target.annotations = map(&[("n", "2")]);
    let update = async |paths: &[&str]| {
        let update = ImageUpdate {
            name: "x".into(),
            labels: map(&[("a", "2"), ("b", "")]),
            target: Some(target.clone()),
        };
        images.update(&ctx, update, &list(paths), None).await
    };
    let i = update(&["labels.b"]).await.unwrap();
    assert_eq!((i.labels, i.target), (map(&[("a", "1")]), first.target.clone()));
    let i = update(&["annotations.n", "annotations.m"]).await.unwrap();
    assert_eq!(i.target.annotations, map(&[("n", "2")]));
    assert_eq!(i.target.digest, first.target.digest);
    for bad in ["name", "target.size", "created_at"] {
        fails(update(&[bad]).await, Class::InvalidArgument);
    }
    let i = update(&[]).await.unwrap();
    assert_eq!((i.labels, i.target), (map(&[("a", "2")]), target.clone()));
    let none = ImageUpdate { name: "x".into(), ..ImageUpdate::default() };
    fails(images.update(&ctx, none, &[], None).await, Class::InvalidArgument);
    let other = ImageUpdate { name: "y".into(), ..ImageUpdate::default() };
    fails(images.update(&ctx, other, &list(&["labels"]), None).await, Class::NotFound);
}

#[tokio::test]
async fn lists_filter() {
    let w = World::new();
    let (ctx, images) = (ctx("default"), w.db.images());
    for (name, data) in [("a", "1"), ("b", "2")] {
        let mut i = image(name, data);
        i.target.annotations = map(&[("k", data)]);
        images.create(&ctx, i, None).await.unwrap();
    }
    let digest = Digest::of(b"2");
    for (filter, want) in [
        (format!("target.digest=={digest}"), "b"),
        (format!("target.digest~=^{}.*$", &digest.as_str()[..20]), "b"),
        (format!("target.mediatype==\"{MANIFEST}\""), "a b"),
        ("annotations.k==1".into(), "a"),
        ("name~=/^a/".into(), "a"),
    ] {
        let found = images.list(&ctx, std::slice::from_ref(&filter)).await.unwrap();
        let names: Vec<_> = found.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names.join(" "), want, "{filter}");
    }
}

#[tokio::test]
async fn delete_guards_by_target() {
    let w = World::new();
    let (ctx, images) = (ctx("default"), w.db.images());
    images.create(&ctx, image("x", "1"), None).await.unwrap();
    let guard = |data: &str| ImageDelete {
        target: Some(Digest::of(data.as_bytes())),
        ..ImageDelete::default()
    };
    fails(images.delete(&ctx, "x", guard("2")).await, Class::NotFound);
    images.delete(&ctx, "x", guard("1")).await.unwrap();
    fails(images.delete(&ctx, "x", ImageDelete::default()).await, Class::NotFound);
    assert_eq!(w.topics(), ["default /images/create", "default /images/delete"]);
}

#[tokio::test]
async fn an_expiring_image_joins_the_lease() {
    let w = World::new();
    let ctx = ctx("default");
    let lease = w.db.leases().create(&ctx, "l", map(&[])).await.unwrap();
    let leased = ctx.clone().with_lease(lease.id);
    let mut expiring = image("x", "1");
    expiring.labels = map(&[("containerd.io/gc.expire", "2030-01-01T00:00:00Z")]);
    w.db.images().create(&leased, expiring, None).await.unwrap();
    w.db.images().create(&leased, image("y", "1"), None).await.unwrap();
    assert_eq!(w.db.leases().resources(&ctx, "l").await.unwrap(), [resource("images", "x")]);
    w.db.images().delete(&leased, "x", ImageDelete::default()).await.unwrap();
    assert_eq!(w.db.leases().resources(&ctx, "l").await.unwrap(), []);
    let unknown = ctx.with_lease("nope");
    let err = fails(w.db.images().create(&unknown, image("z", "1"), None).await, Class::NotFound);
    assert!(err.text().contains("lease does not exist"), "{err}");
}
