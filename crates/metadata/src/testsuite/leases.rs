//! The lease manager.

use gantry_core::Digest;
use gantry_errdefs::Class;

use super::{Release, Subject, ctx, fails, list, map, ok, resource, too_long};

pub(super) async fn run(s: &dyn Subject, release: Release) {
    ids_are_given_or_invented(s).await;
    if release == Release::Current {
        let long = s.create_lease(&ctx("suite-leases"), "long", too_long()).await;
        fails(long, Class::InvalidArgument);
    }
    resources_have_a_shape(s).await;
    the_header_makes_members(s).await;
    a_lease_keeps_its_members(s).await;
}

async fn ids_are_given_or_invented(s: &dyn Subject) {
    let ctx = ctx("suite-leases");
    let lease = ok(s.create_lease(&ctx, "any id / at all", map(&[("a", "1")])).await);
    assert_eq!((lease.id.as_str(), &lease.labels), ("any id / at all", &map(&[("a", "1")])));
    let err = fails(s.create_lease(&ctx, "any id / at all", map(&[])).await, Class::AlreadyExists);
    assert!(err.text().ends_with(": already exists"), "{err}");
    let empty = ok(s.create_lease(&ctx, "e", map(&[("a", ""), ("b", "1")])).await);
    assert_eq!(empty.labels, map(&[("b", "1")]));
    ok(s.delete_lease(&ctx, "e", false).await);
    let invented = ok(s.create_lease(&ctx, "", map(&[])).await).id;
    let (nanos, random) = invented.split_once('-').expect("an invented id has two parts");
    assert!(nanos.parse::<u64>().is_ok() && random.len() == 4, "{invented}");
    for (filter, want) in
        [("labels.a==1", 1), ("id~=at", 1), ("labels.a", 1), ("labels.a!=1", 1), ("nothing", 0)]
    {
        assert_eq!(ok(s.leases(&ctx, &list(&[filter])).await).len(), want, "{filter}");
    }
    assert_eq!(ok(s.leases(&ctx, &[]).await).len(), 2);
    fails(s.leases(&ctx, &list(&["id=="])).await, Class::InvalidArgument);
    assert_eq!(ok(s.leases(&super::ctx("suite-leases-other"), &[]).await), []);
    for id in [&invented, "any id / at all"] {
        ok(s.delete_lease(&ctx, id, true).await);
        fails(s.delete_lease(&ctx, id, true).await, Class::NotFound);
    }
}

async fn resources_have_a_shape(s: &dyn Subject) {
    let ctx = ctx("suite-leases");
    ok(s.create_lease(&ctx, "l", map(&[])).await);
    let digest = Digest::of(b"nobody has this");
    let good = [
        resource("content", digest.as_str()),
        resource("ingests", "layer-x"),
        resource("snapshots/overlayfs", "sha256:chain"),
    ];
    for r in &good {
        // They need not exist, and twice is once.
        ok(s.add_resource(&ctx, "l", r.clone()).await);
        ok(s.add_resource(&ctx, "l", r.clone()).await);
        fails(s.add_resource(&ctx, "none", r.clone()).await, Class::NotFound);
        fails(s.delete_resource(&ctx, "none", r.clone()).await, Class::NotFound);
    }
    let mut members = ok(s.resources(&ctx, "l").await);
    members.sort();
    assert_eq!(members, good);
    for (kind, id, class) in [
        ("content", "x", Class::InvalidArgument),
        ("content/x", digest.as_str(), Class::InvalidArgument),
        ("ingests/x", "r", Class::InvalidArgument),
        ("snapshots", "k", Class::InvalidArgument),
        ("snapshots/a/b", "k", Class::InvalidArgument),
        ("volumes", "v", Class::Unimplemented),
    ] {
        fails(s.add_resource(&ctx, "l", resource(kind, id)).await, class);
        fails(s.delete_resource(&ctx, "l", resource(kind, id)).await, class);
    }
    ok(s.delete_resource(&ctx, "l", good[0].clone()).await);
    ok(s.delete_resource(&ctx, "l", good[0].clone()).await);
    assert_eq!(ok(s.resources(&ctx, "l").await).len(), 2);
    fails(s.resources(&ctx, "none").await, Class::NotFound);
    ok(s.delete_lease(&ctx, "l", false).await);
}

async fn the_header_makes_members(s: &dyn Subject) {
    let ctx = ctx("suite-leases-header");
    for id in ["l", "m"] {
        ok(s.create_lease(&ctx, id, map(&[])).await);
    }
    let leased = ctx.clone().with_lease("l");
    let digest = ok(s.write_blob(&leased, "r", b"leased", map(&[])).await);
    let content = resource("content", digest.as_str());
    assert_eq!(ok(s.resources(&ctx, "l").await), std::slice::from_ref(&content));
    // What exists joins as well, though the write is refused.
    let other = ctx.clone().with_lease("m");
    fails(s.write_blob(&other, "r", b"leased", map(&[])).await, Class::AlreadyExists);
    assert_eq!(ok(s.resources(&ctx, "m").await), std::slice::from_ref(&content));
    // A delete under the lease takes the member out.
    ok(s.delete_blob(&leased, &digest).await);
    assert_eq!(ok(s.resources(&ctx, "l").await), []);
    assert_eq!(ok(s.resources(&ctx, "m").await), [content]);
    let unknown = ctx.clone().with_lease("nope");
    let err = fails(s.write_blob(&unknown, "r", b"not leased", map(&[])).await, Class::NotFound);
    assert!(err.text().contains("lease does not exist"), "{err}");
    for id in ["l", "m"] {
        ok(s.delete_lease(&ctx, id, false).await);
    }
}

async fn a_lease_keeps_its_members(s: &dyn Subject) {
    let ctx = ctx("suite-leases-keep");
    for id in ["l", "m"] {
        ok(s.create_lease(&ctx, id, map(&[])).await);
    }
    let leased = ctx.clone().with_lease("l");
    let child = ok(s.write_blob(&leased, "child", b"child", map(&[])).await);
    let refers = map(&[("containerd.io/gc.ref.content.0", child.as_str())]);
    let parent = ok(s.write_blob(&leased, "parent", b"parent", refers).await);
    // What a member's labels refer to is kept through it.
    ok(s.delete_resource(&ctx, "l", resource("content", child.as_str())).await);
    ok(s.delete_lease(&ctx, "m", true).await);
    ok(s.blob(&ctx, &child).await);
    ok(s.blob(&ctx, &parent).await);
    ok(s.delete_lease(&ctx, "l", true).await);
    fails(s.blob(&ctx, &parent).await, Class::NotFound);
    fails(s.blob(&ctx, &child).await, Class::NotFound);

    // A flat lease keeps its members alone.
    ok(s.create_lease(&ctx, "f", map(&[("containerd.io/gc.flat", "yes")])).await);
    ok(s.create_lease(&ctx, "m", map(&[])).await);
    let leased = ctx.clone().with_lease("f");
    let child = ok(s.write_blob(&leased, "child", b"child", map(&[])).await);
    let refers = map(&[("containerd.io/gc.ref.content.0", child.as_str())]);
    let parent = ok(s.write_blob(&leased, "parent", b"parent", refers).await);
    ok(s.delete_resource(&ctx, "f", resource("content", child.as_str())).await);
    ok(s.delete_lease(&ctx, "m", true).await);
    ok(s.blob(&ctx, &parent).await);
    fails(s.blob(&ctx, &child).await, Class::NotFound);
    ok(s.delete_lease(&ctx, "f", true).await);
}
