//! Content.

use std::time::Duration;

use bytes::Bytes;
use gantry_content::WriterOptions;
use gantry_core::{Context, Digest};
use gantry_errdefs::{Class, Result};
use gantry_metadata::{ContentWriter, SharingPolicy};
use gantry_store::KvRead as _;

use crate::support::{World, ctx, fails, list, map, resource};

async fn open(w: &World, ctx: &Context, reference: &str) -> Result<ContentWriter> {
    let options = WriterOptions { reference: reference.to_owned(), ..WriterOptions::default() };
    w.db.content().writer(ctx, options).await
}

async fn open_expecting(w: &World, ctx: &Context, expected: &Digest) -> Result<ContentWriter> {
    let options =
        WriterOptions { reference: "r".to_owned(), total: 0, expected: Some(expected.clone()) };
    w.db.content().writer(ctx, options).await
}

async fn read(w: &World, ctx: &Context, digest: &Digest) -> Bytes {
    let reader = w.db.content().reader(ctx, digest).await.unwrap();
    reader.read_at(0, 1 << 20).await.unwrap()
}

#[tokio::test]
async fn a_blob_is_written_labelled_listed_and_deleted() {
    let w = World::new();
    let (ctx, content) = (ctx("default"), w.db.content());
    let digest = w.blob(&ctx, "hello", &[("a", "1"), ("none", "")]).await;
    let info = content.info(&ctx, &digest).await.unwrap();
    assert_eq!((info.size, info.labels), (5, map(&[("a", "1")])));
    assert_eq!(&read(&w, &ctx, &digest).await[..], b"hello");

    let update = async |labels: &[(&str, &str)], paths: &[&str]| {
        content.update(&ctx, &digest, map(labels), &list(paths)).await
    };
    let info = update(&[("a", ""), ("x.y/z", "2")], &["labels.a", "labels.x.y/z"]).await.unwrap();
    assert_eq!(info.labels, map(&[("x.y/z", "2")]));
    assert_eq!(update(&[("b", "3")], &[]).await.unwrap().labels, map(&[("b", "3")]));
    fails(update(&[], &["size"]).await, Class::InvalidArgument);
    fails(content.update(&ctx, &Digest::of(b""), map(&[]), &[]).await, Class::NotFound);

    assert_eq!(content.list(&ctx, &list(&["labels.b==3"])).await.unwrap().len(), 1);
    let by_digest = format!("digest=={digest}");
    assert_eq!(content.list(&ctx, &[by_digest]).await.unwrap().len(), 1);
    content.delete(&ctx, &digest).await.unwrap();
    fails(content.delete(&ctx, &digest).await, Class::NotFound);
    fails(content.info(&ctx, &digest).await, Class::NotFound);
    fails(content.reader(&ctx, &digest).await.map(drop), Class::NotFound);
    assert!(w.stored(&digest).await);
    w.collect().await;
    assert!(!w.stored(&digest).await);
    assert_eq!(w.topics(), ["default /content/create", "default /content/delete"]);
}

#[tokio::test]
async fn existing_content_refuses_and_the_lease_gains_it() {
    let w = World::new();
    let plain = ctx("default");
    let digest = w.blob(&plain, "hello", &[]).await;
    w.db.leases().create(&plain, "l", map(&[])).await.unwrap();
    let leased = plain.clone().with_lease("l");
    fails(open_expecting(&w, &leased, &digest).await, Class::AlreadyExists);
    let members = || async { w.db.leases().resources(&plain, "l").await.unwrap() };
    assert_eq!(members().await, [resource("content", digest.as_str())]);
    w.db.leases().delete_resource(&plain, "l", members().await[0].clone()).await.unwrap();

    // Found out at commit.
    fails(w.try_blob(&leased, "hello", &[]).await, Class::AlreadyExists);
    assert_eq!(members().await, [resource("content", digest.as_str())]);
    assert_eq!(w.db.content().statuses(&plain, &[]).await.unwrap(), []);

    // Found out half way.
    let mut writer = open(&w, &leased, "half").await.unwrap();
    writer.write(Bytes::from_static(b"hel")).await.unwrap();
    fails(writer.expect(5, Some(&digest)).await, Class::AlreadyExists);
    assert_eq!(w.db.content().statuses(&plain, &[]).await.unwrap(), []);

    let unknown = plain.clone().with_lease("nope");
    let err = fails(open(&w, &unknown, "r").await, Class::NotFound);
    assert!(err.text().contains("lease does not exist"), "{err}");
}

#[tokio::test]
async fn a_reference_is_locked_while_open_and_resumes_after() {
    let w = World::new();
    let (ctx, content) = (ctx("default"), w.db.content());
    let mut writer = open(&w, &ctx, "ref/1").await.unwrap();
    let err = fails(open(&w, &ctx, "ref/1").await, Class::Unavailable);
    let start =
        err.message().starts_with("ref default/") && err.message().contains("/ref/1 locked for ");
    assert!(start, "{err}");
    writer.write(Bytes::from_static(b"hel")).await.unwrap();
    let live = content.status(&ctx, "ref/1").await.unwrap();
    assert_eq!((live.reference.as_str(), live.offset), ("ref/1", 3));
    drop(writer);
    // At once: opening waits until the old writer has let go.
    let mut writer = open(&w, &ctx, "ref/1").await.unwrap();
    assert_eq!(writer.status().offset, 3);
    writer.write(Bytes::from_static(b"lo")).await.unwrap();
    assert_eq!(content.statuses(&ctx, &list(&["ref~=^ref/"])).await.unwrap().len(), 1);
    assert_eq!(content.statuses(&ctx, &list(&["ref==x"])).await.unwrap().len(), 0);
    assert_eq!(writer.digest(), Digest::of(b"hello"));
    writer.commit(5, Some(&Digest::of(b"hello")), map(&[])).await.unwrap();
    fails(content.status(&ctx, "ref/1").await, Class::NotFound);
}

#[tokio::test]
async fn a_failed_commit_keeps_the_bytes() {
    let w = World::new();
    let ctx = ctx("default");
    for (size, expected, labels, class) in [
        (4, None, map(&[]), Class::FailedPrecondition),
        (0, Some(Digest::of(b"x")), map(&[]), Class::FailedPrecondition),
        (0, None, map(&[("k", &"v".repeat(5000))]), Class::InvalidArgument),
    ] {
        let mut writer = open(&w, &ctx, "r").await.unwrap();
        if writer.status().offset == 0 {
            writer.write(Bytes::from_static(b"hello")).await.unwrap();
        }
        assert_eq!(writer.status().offset, 5);
        fails(writer.commit(size, expected.as_ref(), labels).await, class);
    }
    let mut writer = open(&w, &ctx, "r").await.unwrap();
    writer.truncate(4).await.unwrap();
    let digest = writer.commit(4, None, map(&[])).await.unwrap();
    assert_eq!(digest, Digest::of(b"hell"));
    assert_eq!(w.topics(), ["default /content/create"]);
}

#[tokio::test]
async fn abort_drops_an_ingest_open_or_not() {
    let w = World::new();
    let (ctx, content) = (ctx("default"), w.db.content());
    fails(content.abort(&ctx, "r").await, Class::NotFound);
    let mut writer = open(&w, &ctx, "r").await.unwrap();
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    content.abort(&ctx, "r").await.unwrap();
    fails(content.status(&ctx, "r").await, Class::NotFound);
    fails(writer.write(Bytes::from_static(b"x")).await, Class::NotFound);
    let second = open(&w, &ctx, "r").await.unwrap();
    assert_eq!(second.status().offset, 0);
    fails(writer.commit(0, None, map(&[])).await, Class::NotFound);
    fails(open(&w, &ctx, "r").await, Class::Unavailable);
    drop(second);
    open(&w, &ctx, "r").await.unwrap();
    content.abort(&ctx, "r").await.unwrap();
    fails(content.status(&ctx, "r").await, Class::NotFound);
    assert_eq!(w.content.statuses().await.unwrap(), []);
}

#[tokio::test]
async fn a_shared_blob_needs_no_bytes() {
    let w = World::new();
    let (a, b) = (ctx("a"), ctx("b"));
    let digest = w.blob(&a, "hello", &[("l", "a")]).await;
    let writer = open_expecting(&w, &b, &digest).await.unwrap();
    assert_eq!((writer.status().offset, writer.digest()), (5, digest.clone()));
    drop(writer);
    let writer = open_expecting(&w, &b, &digest).await.unwrap();
    fails(writer.commit(4, None, map(&[])).await, Class::FailedPrecondition);
    let writer = open_expecting(&w, &b, &digest).await.unwrap();
    writer.commit(5, Some(&digest), map(&[("l", "b")])).await.unwrap();
    assert_eq!(w.db.content().info(&b, &digest).await.unwrap().labels, map(&[("l", "b")]));
    w.db.content().delete(&a, &digest).await.unwrap();
    w.image(&b, "keeps", &digest).await;
    w.collect().await;
    assert_eq!(&read(&w, &b, &digest).await[..], b"hello");
}

#[tokio::test]
async fn a_shared_blob_becomes_an_ingest_when_written_to() {
    let w = World::new();
    let digest = w.blob(&ctx("a"), "hello", &[]).await;
    let b = ctx("b");
    let mut writer = open_expecting(&w, &b, &digest).await.unwrap();
    writer.truncate(0).await.unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    writer.commit(5, Some(&digest), map(&[])).await.unwrap();
    assert_eq!(&read(&w, &b, &digest).await[..], b"hello");
}

#[tokio::test]
async fn isolated_namespaces_send_the_bytes_unless_told_otherwise() {
    let w = World::with_policy(SharingPolicy::Isolated);
    let digest = w.blob(&ctx("a"), "hello", &[]).await;
    let b = ctx("b");
    let mut writer = open_expecting(&w, &b, &digest).await.unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    writer.commit(5, Some(&digest), map(&[])).await.unwrap();
    let share = map(&[("containerd.io/namespace.shareable", "true")]);
    w.db.namespaces().update("a", share, &[]).await.unwrap();
    let writer = open_expecting(&w, &ctx("c"), &digest).await.unwrap();
    assert_eq!(writer.status().offset, 5);
}

#[tokio::test]
async fn other_digests_are_checked_at_commit() {
    let w = World::new();
    let ctx = ctx("default");
    let mut sha512 = gantry_core::Digester::new(gantry_core::Algorithm::Sha512);
    sha512.update(b"hello");
    let digest = sha512.finish();
    let mut writer = open_expecting(&w, &ctx, &digest).await.unwrap();
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(writer.commit(5, None, map(&[])).await.unwrap(), digest);
}

#[tokio::test]
async fn an_ingest_ends_with_its_lease_or_after_a_day() {
    let w = World::new();
    let plain = ctx("default");
    w.db.leases().create(&plain, "l", map(&[])).await.unwrap();
    let leased = plain.clone().with_lease("l");
    drop(open(&w, &leased, "leased").await.unwrap());
    drop(open(&w, &plain, "plain").await.unwrap());
    // Reopened, so that the records are there.
    drop(open(&w, &leased, "leased").await.unwrap());
    let held = open(&w, &plain, "plain").await.unwrap();
    let refs = || async {
        let all = w.db.content().statuses(&plain, &[]).await.unwrap();
        all.into_iter().map(|s| s.reference).collect::<Vec<_>>()
    };
    w.collect().await;
    assert_eq!(refs().await, ["leased", "plain"]);
    assert_eq!(
        w.db.leases().resources(&plain, "l").await.unwrap(),
        [resource("ingests", "leased")]
    );
    w.db.leases().delete(&plain, "l", true).await.unwrap();
    assert_eq!(refs().await, ["plain"]);
    drop(held);
    tokio::time::sleep(Duration::from_millis(20)).await;
    w.collect().await;
    assert_eq!(refs().await, ["plain"]);
    assert_eq!(w.content.statuses().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_empty_reference_is_refused() {
    let w = World::new();
    fails(open(&w, &ctx("default"), "").await, Class::InvalidArgument);
}

#[tokio::test]
async fn a_writer_that_fails_to_open_frees_its_reference() {
    let w = World::new();
    let ctx = ctx("default");
    let options = |total| WriterOptions { reference: "r".into(), total, expected: None };
    let mut writer = w.db.content().writer(&ctx, options(5)).await.unwrap();
    writer.write(Bytes::from_static(b"hel")).await.unwrap();
    drop(writer);
    fails(w.db.content().writer(&ctx, options(6)).await, Class::FailedPrecondition);
    let mut writer = w.db.content().writer(&ctx, options(5)).await.unwrap();
    writer.write(Bytes::from_static(b"lo")).await.unwrap();
    writer.commit(0, None, map(&[])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn small_blobs_come_back_after_a_power_cut_and_settle_in_peace() {
    let w = World::new();
    let ctx = ctx("default");
    let kept = |w: &World| {
        let all = w.store.view().unwrap().range(b"").unwrap();
        all.iter().filter(|(key, _)| key.windows(10).any(|part| part == b"blob-bytes")).count()
    };
    let mut digests = Vec::new();
    for n in 0..20 {
        digests.push(w.blob(&ctx, &format!("small {n}"), &[("containerd.io/gc.root", "1")]).await);
    }
    assert_eq!(kept(&w), 20);
    // What a power cut takes: files that were never synced. One blob was deleted before.
    w.db.content().delete(&ctx, &digests[0]).await.unwrap();
    for digest in &digests[..10] {
        w.content.delete(digest).await.unwrap();
    }
    w.db.gc().recover(true).await.unwrap();
    assert_eq!(kept(&w), 0);
    assert!(!w.stored(&digests[0]).await, "deleted before");
    for (n, digest) in digests.iter().enumerate().skip(1) {
        let reader = w.db.content().reader(&ctx, digest).await.unwrap();
        assert_eq!(reader.read_at(0, 100).await.unwrap(), format!("small {n}"));
    }

    // Enough to be settled at once.
    w.db.gc().start();
    for n in 0..300 {
        let data = format!("{n:030000}");
        w.blob(&ctx, &data, &[("containerd.io/gc.root", "1")]).await;
    }
    for _ in 0..600 {
        if kept(&w) < 50 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the bytes stay in the database");
}
