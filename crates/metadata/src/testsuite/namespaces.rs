//! Namespaces.

use gantry_errdefs::Class;

use super::containers::container;
use super::{Release, Subject, ctx, fails, list, map, ok, too_long};

pub(super) async fn run(s: &dyn Subject, release: Release) {
    get_never_fails_and_objects_make_namespaces(s).await;
    labels_change_by_key(s).await;
    delete_wants_them_empty(s, release).await;
}

async fn names(s: &dyn Subject) -> Vec<String> {
    ok(s.namespaces().await).into_iter().map(|n| n.name).collect()
}

async fn get_never_fails_and_objects_make_namespaces(s: &dyn Subject) {
    // Not even of names that no namespace can have.
    for nobody in ["suite-nobody", "a/b", ""] {
        assert_eq!(ok(s.namespace(nobody).await).labels, map(&[]));
    }
    assert!(!names(s).await.contains(&"suite-nobody".to_owned()));
    ok(s.create_container(&ctx("suite-made.by-it"), container("c")).await);
    assert!(names(s).await.contains(&"suite-made.by-it".to_owned()));
    ok(s.delete_container(&ctx("suite-made.by-it"), "c").await);
    // It stays when its last object goes.
    assert!(names(s).await.contains(&"suite-made.by-it".to_owned()));
    ok(s.delete_namespace("suite-made.by-it").await);
}

async fn labels_change_by_key(s: &dyn Subject) {
    let name = "suite-namespace";
    let made = ok(s.create_namespace(name, map(&[("x", "1"), ("y.z/w", "1")])).await);
    assert_eq!(made.labels, map(&[("x", "1"), ("y.z/w", "1")]));
    let err = fails(s.create_namespace(name, map(&[])).await, Class::AlreadyExists);
    assert!(err.message().contains(name), "{err}");
    for bad in ["", "-", "a/b", &"a".repeat(77)] {
        fails(s.create_namespace(bad, map(&[])).await, Class::InvalidArgument);
    }
    fails(s.create_namespace("suite-long", too_long()).await, Class::InvalidArgument);
    let update = async |paths: &[&str]| {
        s.update_namespace(name, map(&[("x", ""), ("z", "1")]), &list(paths)).await
    };
    // The older daemon's answer to an update is empty.
    ok(update(&["labels.x"]).await);
    assert_eq!(ok(s.namespace(name).await).labels, map(&[("y.z/w", "1")]));
    for bad in ["labels", "name"] {
        fails(update(&[bad]).await, Class::InvalidArgument);
    }
    ok(update(&["labels.z"]).await);
    let now = ok(s.namespace(name).await).labels;
    assert_eq!(now, map(&[("y.z/w", "1"), ("z", "1")]));
    // A namespace that is not there is made.
    ok(s.update_namespace("suite-updated", map(&[("k", "v")]), &list(&["labels.k"])).await);
    assert_eq!(ok(s.namespace("suite-updated").await).labels, map(&[("k", "v")]));
    for name in [name, "suite-updated"] {
        ok(s.delete_namespace(name).await);
        fails(s.delete_namespace(name).await, Class::NotFound);
    }
}

async fn delete_wants_them_empty(s: &dyn Subject, release: Release) {
    let ctx = ctx("suite-full");
    let lease = ok(s.create_lease(&ctx, "l", map(&[])).await);
    let leased = ctx.clone().with_lease(lease.id);
    let digest = ok(s.write_blob(&leased, "r", b"of a full namespace", map(&[])).await);
    let err = fails(s.delete_namespace("suite-full").await, Class::FailedPrecondition);
    assert!(err.message().contains("must be empty"), "{err}");
    if release.is_current() {
        assert!(err.message().contains("but it still has blobs"), "{err}");
    }
    ok(s.delete_blob(&ctx, &digest).await);
    ok(s.create_container(&ctx, container("c")).await);
    fails(s.delete_namespace("suite-full").await, Class::FailedPrecondition);
    ok(s.delete_container(&ctx, "c").await);
    // Leases do not count.
    ok(s.delete_namespace("suite-full").await);
    assert!(!names(s).await.contains(&"suite-full".to_owned()));
}
