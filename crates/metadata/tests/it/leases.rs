//! Leases.

use gantry_errdefs::Class;

use crate::support::{World, ctx, fails, list, map, resource};

#[tokio::test]
async fn ids_are_given_or_invented() {
    let w = World::new();
    let (ctx, leases) = (ctx("default"), w.db.leases());
    let lease = leases.create(&ctx, "any id / at all", map(&[("a", "1")])).await.unwrap();
    assert_eq!(lease.id, "any id / at all");
    fails(leases.create(&ctx, "any id / at all", map(&[])).await, Class::AlreadyExists);
    let invented = leases.create(&ctx, "", map(&[])).await.unwrap().id;
    let (nanos, random) = invented.split_once('-').unwrap();
    assert!(nanos.parse::<u64>().is_ok() && random.len() == 4, "{invented}");
    let found = leases.list(&ctx, &list(&["labels.a==1"])).await.unwrap();
    assert_eq!(found, [lease]);
    assert_eq!(leases.list(&ctx, &[]).await.unwrap().len(), 2);
    leases.delete(&ctx, &invented, true).await.unwrap();
    fails(leases.delete(&ctx, &invented, true).await, Class::NotFound);
    assert_eq!(w.topics(), Vec::<String>::new());
}

#[tokio::test]
async fn resources_have_a_shape() {
    let w = World::new();
    let (ctx, leases) = (ctx("default"), w.db.leases());
    leases.create(&ctx, "l", map(&[])).await.unwrap();
    let digest = gantry_core::Digest::of(b"x");
    let good = [
        resource("content", digest.as_str()),
        resource("images", "docker.io/library/x:1"),
        resource("ingests", "layer-x"),
        resource("snapshots/overlayfs", "sha256:chain"),
    ];
    for r in &good {
        leases.add_resource(&ctx, "l", r.clone()).await.unwrap();
        leases.add_resource(&ctx, "l", r.clone()).await.unwrap();
        fails(leases.add_resource(&ctx, "none", r.clone()).await, Class::NotFound);
    }
    assert_eq!(leases.resources(&ctx, "l").await.unwrap(), good);
    for (kind, id, class) in [
        ("content", "x", Class::InvalidArgument),
        ("content/x", digest.as_str(), Class::InvalidArgument),
        ("images", "", Class::InvalidArgument),
        ("ingests/x", "r", Class::InvalidArgument),
        ("snapshots", "k", Class::InvalidArgument),
        ("snapshots/", "k", Class::InvalidArgument),
        ("snapshots/a/b", "k", Class::InvalidArgument),
        ("volumes", "v", Class::Unimplemented),
    ] {
        fails(leases.add_resource(&ctx, "l", resource(kind, id)).await, class);
        fails(leases.delete_resource(&ctx, "l", resource(kind, id)).await, class);
    }
    leases.delete_resource(&ctx, "l", good[0].clone()).await.unwrap();
    leases.delete_resource(&ctx, "l", good[0].clone()).await.unwrap();
    assert_eq!(leases.resources(&ctx, "l").await.unwrap(), good[1..]);
    fails(leases.resources(&ctx, "none").await, Class::NotFound);
}
