//! Blobs as a namespace sees them.

use gantry_core::Digest;
use gantry_errdefs::Class;

use super::{Subject, ctx, fails, list, map, ok, too_long};

pub(super) async fn run(s: &dyn Subject) {
    records_belong_to_a_namespace(s).await;
    labels_change_by_mask(s).await;
    lists_filter(s).await;
}

/// Labels that keep a blob without a lease.
const PINNED: (&str, &str) = ("containerd.io/gc.root", "suite");

async fn records_belong_to_a_namespace(s: &dyn Subject) {
    let (a, b) = (ctx("suite-content-a"), ctx("suite-content-b"));
    let data = b"one blob, two namespaces";
    let digest = ok(s.write_blob(&a, "r", data, map(&[PINNED, ("whose", "a")])).await);
    assert_eq!(digest, Digest::of(data));
    let info = ok(s.blob(&a, &digest).await);
    assert_eq!((info.size, info.labels), (24, map(&[PINNED, ("whose", "a")])));
    assert_eq!(info.created_at, info.updated_at);
    fails(s.blob(&b, &digest).await, Class::NotFound);
    ok(s.write_blob(&b, "r", data, map(&[PINNED, ("whose", "b")])).await);
    assert_eq!(ok(s.blob(&a, &digest).await).labels["whose"], "a");
    assert_eq!(ok(s.blob(&b, &digest).await).labels["whose"], "b");
    let again = s.write_blob(&a, "r2", data, map(&[("whose", "x")])).await;
    let err = fails(again, Class::AlreadyExists);
    assert!(err.message().contains(digest.as_str()), "{err}");
    ok(s.delete_blob(&a, &digest).await);
    let err = fails(s.delete_blob(&a, &digest).await, Class::NotFound);
    assert!(err.message().contains(digest.as_str()), "{err}");
    ok(s.blob(&b, &digest).await);
    ok(s.delete_blob(&b, &digest).await);
}

async fn labels_change_by_mask(s: &dyn Subject) {
    let ctx = ctx("suite-content");
    let digest = ok(s.write_blob(&ctx, "r", b"labelled", map(&[PINNED, ("a", "1")])).await);
    let update = async |labels: &[(&str, &str)], paths: &[&str]| {
        s.update_blob(&ctx, &digest, map(labels), &list(paths)).await
    };
    let info = ok(update(&[("b.c/d", "2"), ("ignored", "x")], &["labels.b.c/d"]).await);
    assert_eq!(info.labels, map(&[PINNED, ("a", "1"), ("b.c/d", "2")]));
    assert!(info.updated_at >= info.created_at);
    let info = ok(update(&[("a", "")], &["labels.a"]).await);
    assert_eq!(info.labels, map(&[PINNED, ("b.c/d", "2")]));
    for all in [&[][..], &["labels"]] {
        let info = ok(update(&[PINNED, ("only", "1")], all).await);
        assert_eq!(info.labels, map(&[PINNED, ("only", "1")]));
    }
    for bad in ["size", "digest", "created_at"] {
        fails(update(&[], &[bad]).await, Class::InvalidArgument);
    }
    fails(s.update_blob(&ctx, &digest, too_long(), &[]).await, Class::InvalidArgument);
    let missing = Digest::of(b"missing");
    fails(s.update_blob(&ctx, &missing, map(&[]), &[]).await, Class::NotFound);
    fails(s.blob(&ctx, &missing).await, Class::NotFound);
    ok(s.delete_blob(&ctx, &digest).await);
    let long = s.write_blob(&ctx, "long", b"with a long label", too_long()).await;
    fails(long, Class::InvalidArgument);
}

async fn lists_filter(s: &dyn Subject) {
    let ctx = ctx("suite-content-list");
    let mut digests = Vec::new();
    for n in ["1", "2", "3"] {
        let labels = map(&[PINNED, ("containerd.io/uncompressed", n)]);
        digests.push(ok(s.write_blob(&ctx, n, n.as_bytes(), labels).await));
    }
    let filter = |filter: &str| list(&[filter]);
    let found = ok(s.blobs(&ctx, &filter(r#"labels."containerd.io/uncompressed"==2"#)).await);
    assert_eq!(found.iter().map(|i| &i.digest).collect::<Vec<_>>(), [&digests[1]]);
    let found = ok(s.blobs(&ctx, &[format!("digest=={}", digests[0])]).await);
    assert_eq!(found.len(), 1);
    assert_eq!(ok(s.blobs(&ctx, &[]).await).len(), 3);
    fails(s.blobs(&ctx, &filter("digest=")).await, Class::InvalidArgument);
    for digest in &digests {
        ok(s.delete_blob(&ctx, digest).await);
    }
}
