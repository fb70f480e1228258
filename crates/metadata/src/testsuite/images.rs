//! Images.

use std::time::{Duration, SystemTime};

use gantry_core::{Descriptor, Digest};
use gantry_errdefs::Class;

use super::{Release, Subject, ctx, fails, just_right, list, map, ok, too_long};
use crate::{Image, ImageDelete, ImageUpdate};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn image(name: &str, data: &str) -> Image {
    Image::new(name, Descriptor::new(MANIFEST, Digest::of(data.as_bytes()), 3))
}

pub(super) async fn run(s: &dyn Subject, release: Release) {
    the_target_must_be_whole_but_need_not_exist(s).await;
    masks_change_what_they_name(s, release).await;
    lists_filter(s, release).await;
    if release.is_current() {
        delete_guards_by_target(s).await;
        times_may_be_given(s).await;
        an_expiring_image_joins_the_lease(s).await;
    }
}

async fn the_target_must_be_whole_but_need_not_exist(s: &dyn Subject) {
    let ctx = ctx("suite-images");
    for spoil in [
        |i: &mut Image| i.name.clear(),
        |i: &mut Image| i.target.size = 0,
        |i: &mut Image| i.target.size = -1,
        |i: &mut Image| i.target.media_type.clear(),
        |i: &mut Image| i.labels = too_long(),
    ] {
        let mut bad = image("x", "1");
        spoil(&mut bad);
        fails(s.create_image(&ctx, bad, None).await, Class::InvalidArgument);
    }
    let mut first = image("any name:at/all", "1");
    first.labels = just_right();
    let made = ok(s.create_image(&ctx, first.clone(), None).await);
    assert_eq!(made.created_at, made.updated_at);
    assert_eq!((&made.target, &made.labels), (&first.target, &first.labels));
    let err = fails(s.create_image(&ctx, first, None).await, Class::AlreadyExists);
    assert!(err.message().contains("any name:at/all"), "{err}");
    assert_eq!(ok(s.image(&ctx, "any name:at/all").await), made);
    // Names are not completed.
    ok(s.create_image(&ctx, image("docker.io/library/x:latest", "1"), None).await);
    fails(s.image(&ctx, "x").await, Class::NotFound);
    for name in ["any name:at/all", "docker.io/library/x:latest"] {
        ok(s.delete_image(&ctx, name, ImageDelete::default()).await);
        fails(s.delete_image(&ctx, name, ImageDelete::default()).await, Class::NotFound);
    }
}

async fn times_may_be_given(s: &dyn Subject) {
    let ctx = ctx("suite-images");
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(77);
    let made = ok(s.create_image(&ctx, image("x", "1"), Some(at)).await);
    assert_eq!((made.created_at, made.updated_at), (at, at));
    let later = at + Duration::from_secs(1);
    let update = ImageUpdate { name: "x".into(), ..ImageUpdate::default() };
    let made = ok(s.update_image(&ctx, update, &list(&["labels"]), Some(later)).await);
    assert_eq!((made.created_at, made.updated_at), (at, later));
    ok(s.delete_image(&ctx, "x", ImageDelete::default()).await);
}

async fn masks_change_what_they_name(s: &dyn Subject, release: Release) {
    let ctx = ctx("suite-images");
    let mut first = image("x", "1");
    first.labels = map(&[("a", "1"), ("b.c/d", "1")]);
    first.target.annotations = map(&[("n", "1"), ("m", "1")]);
    ok(s.create_image(&ctx, first.clone(), None).await);
    let mut target = image("x", "2").target;
    target.annotations = map(&[("n", "2")]);
    let update = async |paths: &[&str]| {
        let update = ImageUpdate {
            name: "x".into(),
            labels: map(&[("a", "2"), ("b.c/d", "")]),
            target: Some(target.clone()),
        };
        s.update_image(&ctx, update, &list(paths), None).await
    };
    let i = ok(update(&["labels.b.c/d"]).await);
    assert_eq!((i.labels, &i.target.digest), (map(&[("a", "1")]), &first.target.digest));
    if release.is_current() {
        let i = ok(update(&["annotations.n"]).await);
        assert_eq!(i.target.annotations, map(&[("n", "2"), ("m", "1")]));
        assert_eq!(i.target.digest, first.target.digest);
    }
    for bad in ["name", "target.size", "created_at"] {
        fails(update(&[bad]).await, Class::InvalidArgument);
    }
    let i = ok(update(&["target"]).await);
    assert_eq!((i.labels, i.target), (map(&[("a", "1")]), target.clone()));
    let i = ok(update(&[]).await);
    assert_eq!((i.labels, i.target), (map(&[("a", "2")]), target.clone()));
    let other = ImageUpdate { name: "y".into(), ..ImageUpdate::default() };
    fails(s.update_image(&ctx, other, &list(&["labels"]), None).await, Class::NotFound);
    let unnamed = ImageUpdate::default();
    fails(s.update_image(&ctx, unnamed, &list(&["labels"]), None).await, Class::InvalidArgument);
    ok(s.delete_image(&ctx, "x", ImageDelete::default()).await);
}

async fn lists_filter(s: &dyn Subject, release: Release) {
    let ctx = ctx("suite-images-list");
    for (name, data) in [("a", "1"), ("b", "2")] {
        let mut i = image(name, data);
        i.target.annotations = map(&[("k", data)]);
        i.labels = map(&[("l", data)]);
        ok(s.create_image(&ctx, i, None).await);
    }
    let digest = Digest::of(b"2");
    let mut cases = vec![
        (format!("target.digest=={digest}"), "b"),
        (format!("target.digest~=^{}.*$", &digest.as_str()[..20]), "b"),
        (format!("target.mediatype==\"{MANIFEST}\""), "a b"),
        ("target.nothing".into(), ""),
        ("name~=/^a/".into(), "a"),
        ("labels.l!=1".into(), "b"),
    ];
    if release.is_current() {
        cases.push(("annotations.k==1".into(), "a"));
    }
    for (filter, want) in cases {
        let found = ok(s.images(&ctx, std::slice::from_ref(&filter)).await);
        let mut names: Vec<_> = found.iter().map(|i| i.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names.join(" "), want, "{filter}");
    }
    fails(s.images(&ctx, &list(&["name=="])).await, Class::InvalidArgument);
    assert_eq!(ok(s.images(&ctx_other(), &[]).await), []);
    for name in ["a", "b"] {
        let how = ImageDelete { synchronous: true, ..ImageDelete::default() };
        ok(s.delete_image(&ctx, name, how).await);
    }
}

fn ctx_other() -> gantry_core::Context {
    ctx("suite-images-other")
}

async fn delete_guards_by_target(s: &dyn Subject) {
    let ctx = ctx("suite-images");
    ok(s.create_image(&ctx, image("x", "1"), None).await);
    let guard = |data: &str| ImageDelete {
        target: Some(Digest::of(data.as_bytes())),
        ..ImageDelete::default()
    };
    fails(s.delete_image(&ctx, "x", guard("2")).await, Class::NotFound);
    ok(s.delete_image(&ctx, "x", guard("1")).await);
}

async fn an_expiring_image_joins_the_lease(s: &dyn Subject) {
    let ctx = ctx("suite-images");
    let lease = ok(s.create_lease(&ctx, "l", map(&[])).await);
    let leased = ctx.clone().with_lease(lease.id);
    let mut expiring = image("x", "1");
    expiring.labels = map(&[("containerd.io/gc.expire", "2999-01-01T00:00:00Z")]);
    ok(s.create_image(&leased, expiring, None).await);
    ok(s.create_image(&leased, image("y", "1"), None).await);
    assert_eq!(ok(s.resources(&ctx, "l").await), [super::resource("images", "x")]);
    ok(s.delete_image(&leased, "x", ImageDelete::default()).await);
    assert_eq!(ok(s.resources(&ctx, "l").await), []);
    ok(s.delete_image(&ctx, "y", ImageDelete::default()).await);
    ok(s.delete_lease(&ctx, "l", false).await);
}
