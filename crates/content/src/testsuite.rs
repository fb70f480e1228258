//! The conformance suite of [`Store`]: what every implementation and every wrapper must do.
//!
//! [`run`] uses one store for all cases; each case works with references and bytes of its own, so
//! the store need not be empty. Failures panic.

use bytes::Bytes;
use gantry_core::Digest;
use gantry_errdefs::expect::{fails, ok};
use gantry_errdefs::{Class, Error, Result};

use crate::{Info, Store, Writer, WriterOptions};

/// Runs every case against `store`.
pub async fn run(store: &dyn Store) {
    behind_the_api(store).await;
    delete_leaves_open_readers(store).await;
    truncate_cuts(store).await;
}

/// Runs the cases that a store can pass which is reached over the content API: there every read
/// is a call of its own, and a writer can only go on or begin anew.
pub async fn behind_the_api(store: &dyn Store) {
    commit_makes_a_blob(store).await;
    reads_any_range(store).await;
    small_blobs_in_one_go(store).await;
    walk_sees_blobs_once(store).await;
    one_writer_per_reference(store).await;
    writer_resumes(store).await;
    truncate_begins_anew(store).await;
    wrong_size_keeps_the_bytes(store).await;
    wrong_digest_keeps_the_bytes(store).await;
    duplicate_is_refused_and_dropped(store).await;
    expected_that_exists_is_refused(store).await;
    abort_drops(store).await;
    abort_under_a_writer(store).await;
    statuses_lists_open_and_idle(store).await;
    other_algorithms(store).await;
    empty_blob(store).await;
    missing_things_are_not_found(store).await;
}

/// Opens an ingest of `reference`.
///
/// # Errors
/// Those of [`Store::writer`].
pub async fn open(store: &dyn Store, reference: &str) -> Result<Box<dyn Writer>> {
    store.writer(WriterOptions { reference: reference.into(), ..WriterOptions::default() }).await
}

/// Writes `data` as a blob.
///
/// # Errors
/// Those of the store.
pub async fn put(store: &dyn Store, reference: &str, data: &[u8]) -> Result<Digest> {
    let mut writer = open(store, reference).await?;
    writer.write(Bytes::copy_from_slice(data)).await?;
    writer.commit(data.len() as u64, Some(&Digest::of(data))).await
}

/// Reads the whole blob `digest`.
///
/// # Errors
/// Those of the store.
pub async fn get(store: &dyn Store, digest: &Digest) -> Result<Bytes> {
    let reader = store.reader(digest).await?;
    let len = usize::try_from(reader.size()).expect("blobs of the suite fit in memory");
    reader.read_at(0, len).await
}

async fn commit_makes_a_blob(store: &dyn Store) {
    let data = b"commit makes a blob";
    let mut writer = ok(open(store, "suite-commit").await);
    assert_eq!(writer.status().offset, 0);
    assert_eq!(writer.digest(), Digest::of(b""));
    ok(writer.write(Bytes::from_static(&data[..7])).await);
    assert_eq!(writer.digest(), Digest::of(&data[..7]));
    ok(writer.write(Bytes::from_static(&data[7..])).await);
    assert_eq!(writer.status().offset, data.len() as u64);
    let digest = Digest::of(data);
    fails(store.info(&digest).await, Class::NotFound);
    assert_eq!(ok(writer.commit(data.len() as u64, Some(&digest)).await), digest);
    let info = ok(store.info(&digest).await);
    assert_eq!((info.digest, info.size), (digest.clone(), data.len() as u64));
    assert_eq!(ok(get(store, &digest).await), &data[..]);
    fails(store.status("suite-commit").await, Class::NotFound);
}

async fn reads_any_range(store: &dyn Store) {
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = ok(put(store, "suite-range", &data).await);
    let reader = ok(store.reader(&digest).await);
    assert_eq!(reader.size(), data.len() as u64);
    for (offset, len) in [(0, 1), (399_999, 1), (17, 300_000), (399_000, 5_000), (400_000, 9)] {
        let end = (offset + len).min(data.len());
        let read = ok(reader.read_at(offset as u64, len).await);
        assert_eq!(read, &data[offset..end], "{offset}+{len}");
    }
    assert!(ok(reader.read_at(u64::MAX, 1).await).is_empty());
    let copied = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        std::io::copy(&mut reader.into_blocking(), &mut all).map(|_| all)
    });
    let all = copied.await.expect("no panic").expect("a blob reads as a stream");
    assert_eq!(all, data);
}

async fn small_blobs_in_one_go(store: &dyn Store) {
    let one = ok(put(store, "suite-small-1", b"small blob").await);
    let two = ok(put(store, "suite-small-2", b"another small blob").await);
    let large = ok(put(store, "suite-small-3", &[7; 100]).await);
    let none = Digest::of(b"small blob that is not there");
    let read = ok(store.read_small(&[two, none, large, one], 99).await);
    let small = |bytes| Some(Bytes::from_static(bytes));
    assert_eq!(read, [small(b"another small blob"), None, None, small(b"small blob")]);
}

async fn walk_sees_blobs_once(store: &dyn Store) {
    let mut want = Vec::new();
    for i in 0..5 {
        want.push(ok(put(store, "suite-walk", format!("walk {i}").as_bytes()).await));
    }
    let mut seen: Vec<Info> = Vec::new();
    ok(store
        .walk(&mut |info| {
            seen.push(info);
            Ok(())
        })
        .await);
    for digest in &want {
        assert_eq!(seen.iter().filter(|i| i.digest == *digest).count(), 1);
    }
    let stopped = store.walk(&mut |_| Err(Error::aborted("enough"))).await;
    fails(stopped, Class::Aborted);
}

async fn delete_leaves_open_readers(store: &dyn Store) {
    let digest = ok(put(store, "suite-delete", b"to be deleted").await);
    let reader = ok(store.reader(&digest).await);
    ok(store.delete(&digest).await);
    fails(store.info(&digest).await, Class::NotFound);
    fails(store.delete(&digest).await, Class::NotFound);
    assert_eq!(ok(reader.read_at(0, 100).await), &b"to be deleted"[..]);
}

async fn one_writer_per_reference(store: &dyn Store) {
    let first = ok(open(store, "suite-lock").await);
    let err = fails(open(store, "suite-lock").await, Class::Unavailable);
    assert!(err.message().contains("locked for"), "{err}");
    drop(first);
    drop(ok(open(store, "suite-lock").await));
    ok(store.abort("suite-lock").await);
    fails(open(store, "").await, Class::InvalidArgument);
}

async fn writer_resumes(store: &dyn Store) {
    let mut writer = ok(open(store, "suite-resume").await);
    ok(writer.write(Bytes::from_static(b"first ")).await);
    drop(writer);
    assert_eq!(ok(store.status("suite-resume").await).offset, 6);
    let mut writer = ok(open(store, "suite-resume").await);
    assert_eq!(writer.status().offset, 6);
    assert_eq!(writer.digest(), Digest::of(b"first "));
    ok(writer.write(Bytes::from_static(b"second")).await);
    let digest = ok(writer.commit(12, None).await);
    assert_eq!(digest, Digest::of(b"first second"));
}

async fn truncate_begins_anew(store: &dyn Store) {
    let mut writer = ok(open(store, "suite-anew").await);
    ok(writer.write(Bytes::from_static(b"in vain, and longer")).await);
    fails(writer.truncate(20).await, Class::InvalidArgument);
    ok(writer.truncate(0).await);
    assert_eq!((writer.status().offset, writer.digest()), (0, Digest::of(b"")));
    ok(writer.write(Bytes::from_static(b"anew")).await);
    let digest = ok(writer.commit(4, None).await);
    assert_eq!(ok(get(store, &digest).await), &b"anew"[..]);
}

async fn truncate_cuts(store: &dyn Store) {
    let mut writer = ok(open(store, "suite-truncate").await);
    ok(writer.write(Bytes::from_static(b"truncate me")).await);
    fails(writer.truncate(12).await, Class::InvalidArgument);
    ok(writer.truncate(9).await);
    assert_eq!(writer.status().offset, 9);
    assert_eq!(writer.digest(), Digest::of(b"truncate "));
    ok(writer.truncate(0).await);
    ok(writer.write(Bytes::from_static(b"after all")).await);
    let digest = ok(writer.commit(9, None).await);
    assert_eq!(ok(get(store, &digest).await), &b"after all"[..]);
}

async fn wrong_size_keeps_the_bytes(store: &dyn Store) {
    let mut writer = ok(open(store, "suite-size").await);
    ok(writer.write(Bytes::from_static(b"sized")).await);
    fails(writer.commit(6, None).await, Class::FailedPrecondition);
    let writer = ok(open(store, "suite-size").await);
    assert_eq!(writer.status().offset, 5);
    ok(writer.commit(5, None).await);
}

async fn wrong_digest_keeps_the_bytes(store: &dyn Store) {
    let mut writer = ok(open(store, "suite-digest").await);
    ok(writer.write(Bytes::from_static(b"digested")).await);
    let wrong = Digest::of(b"something else");
    fails(writer.commit(0, Some(&wrong)).await, Class::FailedPrecondition);
    fails(store.info(&wrong).await, Class::NotFound);
    let writer = ok(open(store, "suite-digest").await);
    ok(writer.commit(0, Some(&Digest::of(b"digested"))).await);
}

async fn duplicate_is_refused_and_dropped(store: &dyn Store) {
    let digest = ok(put(store, "suite-dup", b"only once").await);
    let mut writer = ok(open(store, "suite-dup").await);
    ok(writer.write(Bytes::from_static(b"only once")).await);
    fails(writer.commit(0, None).await, Class::AlreadyExists);
    fails(store.status("suite-dup").await, Class::NotFound);
    assert_eq!(ok(get(store, &digest).await), &b"only once"[..]);
}

async fn expected_that_exists_is_refused(store: &dyn Store) {
    let digest = ok(put(store, "suite-expected", b"expected").await);
    let options =
        WriterOptions { reference: "suite-expected-2".into(), total: 8, expected: Some(digest) };
    fails(store.writer(options).await.map(drop), Class::AlreadyExists);
    fails(store.status("suite-expected-2").await, Class::NotFound);
}

async fn abort_drops(store: &dyn Store) {
    let mut writer = ok(open(store, "suite-abort").await);
    ok(writer.write(Bytes::from_static(b"in vain")).await);
    drop(writer);
    ok(store.abort("suite-abort").await);
    fails(store.status("suite-abort").await, Class::NotFound);
    fails(store.abort("suite-abort").await, Class::NotFound);
    assert_eq!(ok(open(store, "suite-abort").await).status().offset, 0);
    ok(store.abort("suite-abort").await);
}

async fn abort_under_a_writer(store: &dyn Store) {
    let mut writer = ok(open(store, "suite-abort-open").await);
    ok(writer.write(Bytes::from_static(b"still here")).await);
    ok(store.abort("suite-abort-open").await);
    fails(writer.commit(0, None).await, Class::NotFound);
    fails(store.status("suite-abort-open").await, Class::NotFound);
}

async fn statuses_lists_open_and_idle(store: &dyn Store) {
    let total = WriterOptions { reference: "suite-open".into(), total: 9, expected: None };
    let mut open_writer = ok(store.writer(total).await);
    ok(open_writer.write(Bytes::from_static(b"open")).await);
    drop(ok(open(store, "suite-idle").await));
    let all = ok(store.statuses().await);
    let find = |r: &str| all.iter().find(|s| s.reference == r).expect("the ingest is listed");
    assert_eq!((find("suite-open").offset, find("suite-open").total), (4, 9));
    assert_eq!(find("suite-idle").offset, 0);
    let one = ok(store.status("suite-open").await);
    assert_eq!((one.offset, one.total), (4, 9));
    assert!(one.started_at <= one.updated_at);
    drop(open_writer);
    ok(store.abort("suite-open").await);
    ok(store.abort("suite-idle").await);
}

async fn other_algorithms(store: &dyn Store) {
    use gantry_core::{Algorithm, Digester};
    for algorithm in [Algorithm::Sha384, Algorithm::Sha512] {
        let mut digester = Digester::new(algorithm);
        digester.update(b"strong");
        let digest = digester.finish();
        // Known from the start, and known at the end only.
        let known = WriterOptions {
            reference: "suite-strong".into(),
            total: 0,
            expected: Some(digest.clone()),
        };
        for options in [known.clone(), WriterOptions { expected: None, ..known }] {
            let mut writer = ok(store.writer(options).await);
            ok(writer.write(Bytes::from_static(b"strong")).await);
            assert_eq!(ok(writer.commit(6, Some(&digest)).await), digest);
            ok(store.delete(&digest).await);
        }
    }
}

async fn empty_blob(store: &dyn Store) {
    let digest = Digest::of(b"");
    let writer = ok(open(store, "suite-empty").await);
    assert_eq!(ok(writer.commit(0, Some(&digest)).await), digest);
    assert_eq!(ok(store.info(&digest).await).size, 0);
    assert!(ok(get(store, &digest).await).is_empty());
}

async fn missing_things_are_not_found(store: &dyn Store) {
    let nothing = Digest::of(b"no such blob");
    fails(store.info(&nothing).await, Class::NotFound);
    fails(store.reader(&nothing).await.map(drop), Class::NotFound);
    fails(store.delete(&nothing).await, Class::NotFound);
    fails(store.status("no such ref").await, Class::NotFound);
    fails(store.abort("no such ref").await, Class::NotFound);
}
