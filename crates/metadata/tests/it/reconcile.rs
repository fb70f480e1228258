//! Start-up: records and backends that do not match.

use bytes::Bytes;
use gantry_content::WriterOptions;
use gantry_core::Digest;
use gantry_metadata::{Db, Options, Reconciled};

use crate::support::{SN, World, ctx, map};

/// A blob as a crash between backend and record leaves it.
async fn orphan_blob(w: &World, data: &str) -> Digest {
    let options = WriterOptions { reference: data.to_owned(), ..WriterOptions::default() };
    let mut writer = w.content.writer(options).await.unwrap();
    writer.write(Bytes::copy_from_slice(data.as_bytes())).await.unwrap();
    writer.commit(0, None).await.unwrap()
}

async fn orphan_ingest(w: &World, backend_ref: &str) {
    let options = WriterOptions { reference: backend_ref.to_owned(), ..WriterOptions::default() };
    let mut writer = w.content.writer(options).await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
}

#[tokio::test]
async fn what_matches_is_left_alone() {
    let w = World::new();
    let ctx = ctx("default");
    let digest = w.blob(&ctx, "data", &[]).await;
    w.layer(&ctx, "base", None).await;
    assert_eq!(w.db.gc().reconcile().await.unwrap(), Reconciled::default());
    assert!(w.stored(&digest).await && w.has_snapshot(&ctx, "base").await);
}

#[tokio::test]
async fn orphans_in_the_backends_go() {
    let w = World::new();
    let ctx = ctx("default");
    let kept = w.blob(&ctx, "kept", &[]).await;
    let orphan = orphan_blob(&w, "orphan").await;
    w.native.prepare("default/70/k", None, map(&[])).await.unwrap();
    w.native.commit("default/71/base", "default/70/k", Default::default()).await.unwrap();
    w.native.prepare("default/72/top", Some("default/71/base"), map(&[])).await.unwrap();
    w.native.prepare("not ours", None, map(&[])).await.unwrap();
    let report = w.db.gc().reconcile().await.unwrap();
    assert_eq!(report.orphans_removed.len(), 3, "{report:?}");
    assert!(w.stored(&kept).await && !w.stored(&orphan).await);
    assert_eq!(w.native_count().await, 1);
}

#[tokio::test]
async fn a_blob_whose_record_was_lost_is_not_taken_for_whole() {
    let w = World::new();
    let ctx = ctx("default");
    let kept = w.blob(&ctx, "kept", &[]).await;
    // As a power cut leaves it: it has its name, and not all of its bytes.
    let orphan = orphan_blob(&w, "cut short").await;
    std::fs::remove_file(w.blob_path(&orphan)).unwrap();
    std::fs::write(w.blob_path(&orphan), "cut").unwrap();
    let report = w.db.gc().recover(true).await.unwrap();
    assert_eq!(report.orphans_removed, [format!("blob {orphan}")]);
    assert!(w.stored(&kept).await);
    let again = w.blob(&ctx, "cut short", &[]).await;
    assert_eq!(again, orphan);
    let reader = w.db.content().reader(&ctx, &again).await.unwrap();
    assert_eq!(reader.read_at(0, 100).await.unwrap(), "cut short");
}

#[tokio::test]
async fn ingests_without_a_record_are_adopted_and_resume() {
    let w = World::new();
    let ctx = ctx("default");
    orphan_ingest(&w, "default/70/layer/1").await;
    orphan_ingest(&w, "default/60/layer/1").await;
    orphan_ingest(&w, "of nobody").await;
    let report = w.db.gc().recover(false).await.unwrap();
    assert_eq!(report.ingests_adopted, ["default/70/layer/1"]);
    assert_eq!(report.orphans_removed.len(), 2, "{report:?}");
    let options = WriterOptions { reference: "layer/1".into(), ..WriterOptions::default() };
    let writer = w.db.content().writer(&ctx, options).await.unwrap();
    assert_eq!(writer.status().offset, 4);
    writer.commit(4, None, map(&[])).await.unwrap();
}

#[tokio::test]
async fn records_of_what_is_gone_go() {
    let w = World::new();
    let ctx = ctx("default");
    let lost = w.blob(&ctx, "lost", &[]).await;
    let kept = w.blob(&ctx, "kept", &[]).await;
    w.content.delete(&lost).await.unwrap();
    w.layer(&ctx, "kept", None).await;
    let sn = w.db.snapshotter(SN).unwrap();
    sn.prepare(&ctx, "lost", None, map(&[])).await.unwrap();
    let mut names = Vec::new();
    let visit = &mut |info: gantry_snapshots::Info| {
        names.push(info.name);
        Ok(())
    };
    w.native.walk(visit).await.unwrap();
    names.retain(|name| name.ends_with("/lost"));
    w.native.remove(&names[0]).await.unwrap();
    let report = w.db.gc().reconcile().await.unwrap();
    assert_eq!(report.records_removed.len(), 2, "{report:?}");
    assert!(!w.has_blob(&ctx, &lost).await && w.has_blob(&ctx, &kept).await);
    assert!(!w.has_snapshot(&ctx, "lost").await && w.has_snapshot(&ctx, "kept").await);
    // Free to be made again.
    sn.prepare(&ctx, "lost", None, map(&[])).await.unwrap();
    w.blob(&ctx, "lost", &[]).await;
}

#[tokio::test]
async fn an_empty_content_directory_is_not_believed() {
    let w = World::new();
    let ctx = ctx("default");
    let digest = w.blob(&ctx, "data", &[]).await;
    w.content.delete(&digest).await.unwrap();
    let err = w.db.gc().reconcile().await.unwrap_err();
    assert!(err.is_data_loss(), "{err}");
    assert!(w.has_blob(&ctx, &digest).await);
}

#[tokio::test]
async fn numbers_are_never_used_twice() {
    let w = World::new();
    let ctx = ctx("default");
    w.layer(&ctx, "a", None).await;
    let mut options = Options::new(w.store.clone(), w.content.clone());
    options.snapshotters.insert(SN.into(), w.native.clone());
    let reopened = Db::open(options).unwrap();
    let sn = reopened.snapshotter(SN).unwrap();
    sn.prepare(&ctx, "b", Some("a"), map(&[])).await.unwrap();
    let mut numbers = Vec::new();
    let visit = &mut |info: gantry_snapshots::Info| {
        numbers.push(info.name.split('/').nth(1).unwrap().parse::<u64>().unwrap());
        Ok(())
    };
    w.native.walk(visit).await.unwrap();
    numbers.sort_unstable();
    assert!(numbers[0] < 1000 && numbers[1] >= 1001, "{numbers:?}");
}
