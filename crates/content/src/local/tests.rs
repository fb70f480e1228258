//! Tests of the file store beyond the conformance suite: the disk, crashes, concurrency.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::testsuite::{self, get, open, put};

fn store() -> (TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    (dir, store)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn conforms() {
    let (dir, store) = store();
    testsuite::run(&store).await;
    assert_eq!(names(&dir.path().join("ingest")), [""; 0], "ingests are left");
}

#[tokio::test]
async fn layout_is_containerds() {
    let (dir, store) = store();
    let mut writer = store
        .writer(WriterOptions {
            reference: "k8s.io/1/layer".into(),
            total: 300_000,
            expected: None,
        })
        .await
        .unwrap();
    let bytes = Bytes::from(vec![b'a'; 300_000]);
    writer.write(bytes.clone()).await.unwrap();
    let ingest = dir.path().join("ingest").join(Digest::of(b"k8s.io/1/layer").hex());
    assert_eq!(names(&ingest), ["data", "ref", "startedat", "total", "updatedat"]);
    assert_eq!(fs::read_to_string(ingest.join("ref")).unwrap(), "k8s.io/1/layer");
    assert_eq!(fs::read_to_string(ingest.join("total")).unwrap(), "300000");
    let digest = writer.commit(300_000, None).await.unwrap();
    let blob = dir.path().join("blobs/sha256").join(digest.hex());
    assert_eq!(fs::read(&blob).unwrap(), bytes);
    assert_eq!(fs::metadata(&blob).unwrap().permissions().mode() & 0o777, 0o444);
    assert!(!ingest.exists());
}

#[tokio::test]
async fn ingests_survive_a_restart() {
    let (dir, store) = store();
    let mut writer = open(&store, "r").await.unwrap();
    let big = vec![7; 1_000_000];
    writer.write(Bytes::from(big.clone())).await.unwrap();
    drop((writer, store));
    let store = LocalStore::open(dir.path()).unwrap();
    assert_eq!(store.status("r").await.unwrap().offset, 1_000_000);
    let writer = open(&store, "r").await.unwrap();
    assert_eq!(writer.digest(), Digest::of(&big));
}

#[tokio::test]
async fn start_removes_what_a_crash_leaves() {
    let (dir, store) = store();
    let digest = put(&store, "done", b"done").await.unwrap();
    drop(open(&store, "whole").await.unwrap());
    let ingests = dir.path().join("ingest");
    // Crashed while making an ingest, after the rename of a commit, and while aborting.
    fs::create_dir(ingests.join("aa")).unwrap();
    fs::create_dir(ingests.join("bb")).unwrap();
    fs::write(ingests.join("bb/ref"), "bb").unwrap();
    fs::create_dir(ingests.join(".removed-0")).unwrap();
    fs::write(ingests.join(".removed-0/data"), "x").unwrap();
    fs::write(ingests.join(".removed-0/ref"), "x").unwrap();
    fs::write(ingests.join("stray"), "").unwrap();
    drop(store);
    let store = LocalStore::open(dir.path()).unwrap();
    assert_eq!(names(&ingests), [Digest::of(b"whole").hex()]);
    assert_eq!(get(&store, &digest).await.unwrap(), &b"done"[..]);
    assert_eq!(store.statuses().await.unwrap().len(), 1);
}

#[tokio::test]
async fn half_made_ingest_is_taken_over() {
    let (dir, store) = store();
    let ingest = dir.path().join("ingest").join(Digest::of(b"r").hex());
    fs::create_dir(&ingest).unwrap();
    assert!(store.statuses().await.unwrap().is_empty());
    put(&store, "r", b"data").await.unwrap();
}

#[tokio::test]
async fn another_total_is_refused() {
    let (_dir, store) = store();
    let options = |total| WriterOptions { reference: "r".into(), total, expected: None };
    drop(store.writer(options(10)).await.unwrap());
    let err = store.writer(options(11)).await.map(drop).unwrap_err();
    assert!(err.is_failed_precondition());
    assert_eq!(store.writer(options(0)).await.unwrap().status().total, 10);
}

#[tokio::test]
async fn blobs_of_another_daemon_are_read_but_kept() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = Digest::of(b"theirs");
    let file = dir.path().join("blobs/sha256").join(theirs.hex());
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "theirs").unwrap();
    for _ in 0..2 {
        let store = LocalStore::open(dir.path()).unwrap();
        assert_eq!(get(&store, &theirs).await.unwrap(), &b"theirs"[..]);
        let ours = put(&store, "r", b"ours").await.unwrap();
        let mut seen = Vec::new();
        let mut see = |info: Info| {
            seen.push(info.digest);
            Ok(())
        };
        store.walk(&mut see).await.unwrap();
        assert_eq!(seen, std::slice::from_ref(&ours));
        store.delete(&theirs).await.unwrap();
        assert!(put(&store, "r", b"theirs").await.unwrap_err().is_already_exists());
        store.delete(&ours).await.unwrap();
        assert!(file.exists());
    }
    fs::write(dir.path().join("foreign"), "").unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    store.delete(&theirs).await.unwrap();
    assert!(!file.exists());
}

#[tokio::test]
async fn failed_rename_keeps_the_ingest() {
    let (dir, store) = store();
    let blobs = dir.path().join("blobs/sha256");
    fs::remove_dir(&blobs).unwrap();
    assert!(put(&store, "r", b"data").await.is_err());
    fs::create_dir(&blobs).unwrap();
    let data = dir.path().join("ingest").join(Digest::of(b"r").hex()).join("data");
    assert_eq!(fs::metadata(data).unwrap().permissions().mode() & 0o777, 0o644);
    let writer = open(&store, "r").await.unwrap();
    assert_eq!(writer.status().offset, 4);
    writer.commit(4, Some(&Digest::of(b"data"))).await.unwrap();
}

#[tokio::test]
async fn pieces_stay_what_they_are_while_more_is_read() {
    const PIECE: usize = 128 << 10;
    let (dir, store) = store();
    let bytes: Vec<u8> = (0..40 * PIECE + 17).map(|at| (at * 7 + at / PIECE) as u8).collect();
    let digest = put(&store, "blob", &bytes).await.unwrap();
    let file = fs::File::open(dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
    // All held, every other held, none held; out of memory and from the disk.
    for (hold_every, forget) in [(1, false), (2, true), (usize::MAX, false), (usize::MAX, true)] {
        let reader = store.reader(&digest).await.unwrap();
        let mut held = Vec::new();
        for (count, at) in (0..bytes.len()).step_by(PIECE).enumerate() {
            if forget && count % 3 == 0 {
                file.sync_all().unwrap();
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            let piece = reader.read_at(at as u64, PIECE).await.unwrap();
            assert!(piece == bytes[at..bytes.len().min(at + PIECE)], "at {at}");
            if count % hold_every == 0 {
                held.push((at, piece.slice(piece.len() / 2..)));
            }
        }
        for (at, piece) in held {
            let end = bytes.len().min(at + PIECE);
            assert!(piece == bytes[end - piece.len()..end], "held from {at}");
        }
    }
}

#[tokio::test]
async fn strays_among_blobs_are_ignored() {
    let (dir, store) = store();
    put(&store, "r", b"data").await.unwrap();
    fs::write(dir.path().join("blobs/sha256/notahash"), "").unwrap();
    let mut count = 0;
    store
        .walk(&mut |_| {
            count += 1;
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(count, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_equal_commits_wins() {
    let (_dir, store) = store();
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, &format!("r{i}"), b"same").await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(e) => assert!(e.is_already_exists(), "{e}"),
        }
    }
    assert_eq!(won, 1);
    assert!(store.statuses().await.unwrap().is_empty());
}

#[tokio::test]
async fn cancelled_write_keeps_the_reference_until_it_ends() {
    let (_dir, store) = store();
    let mut writer = open(&store, "r").await.unwrap();
    {
        let mut write = Box::pin(writer.write(Bytes::from(vec![1; 4_000_000])));
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        assert!(write.as_mut().poll(&mut cx).is_pending());
    }
    drop(writer);
    let writer = loop {
        match open(&store, "r").await {
            Ok(writer) => break writer,
            Err(e) => assert!(e.is_unavailable(), "{e}"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(writer.status().offset, 4_000_000);
    assert_eq!(writer.digest(), Digest::of(&vec![1; 4_000_000]));
}

#[tokio::test]
async fn a_small_blob_may_be_left_to_the_caller() {
    let (dir, store) = store();
    let deferred = async |data: &'static [u8]| {
        let mut writer = open(&store, "r").await.unwrap();
        writer.write(Bytes::from_static(data)).await.unwrap();
        writer.commit_deferred(0, None).await
    };
    let (digest, bytes) = deferred(b"small").await.unwrap();
    assert_eq!(bytes.as_deref(), Some(&b"small"[..]));
    assert_eq!(get(&store, &digest).await.unwrap(), &b"small"[..]);
    assert!(deferred(b"small").await.unwrap_err().is_already_exists());
    store.delete(&digest).await.unwrap();
    store.settle(std::slice::from_ref(&digest)).await.expect("one that is gone is no error");
    let (digest, bytes) = deferred(b"small").await.unwrap();
    assert!(bytes.is_some());
    assert_eq!(names(&dir.path().join("ingest")), [""; 0], "nothing is left beside the blob");

    let mut writer = open(&store, "r").await.unwrap();
    writer.write(vec![1; 100_000].into()).await.unwrap();
    let (_, bytes) = writer.commit_deferred(0, None).await.unwrap();
    assert!(bytes.is_none(), "a large one is durable at once");

    // A power cut may leave nothing of it, or a file of zeros.
    let file = dir.path().join("blobs/sha256").join(digest.hex());
    for left in [None, Some([0; 5])] {
        fs::remove_file(&file).unwrap();
        if let Some(zeros) = left {
            fs::write(&file, zeros).unwrap();
        }
        let blob = (digest.clone(), Bytes::from_static(b"small"));
        store.restore(vec![blob]).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"small");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o444);
    }
}

#[tokio::test]
async fn an_ingest_in_memory_is_seen_and_aborted() {
    let (dir, store) = store();
    let mut writer = open(&store, "r").await.unwrap();
    writer.write(Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(names(&dir.path().join("ingest")), [""; 0]);
    assert_eq!(store.status("r").await.unwrap().offset, 3);
    assert_eq!(store.statuses().await.unwrap().len(), 1);
    store.abort("r").await.unwrap();
    assert!(store.status("r").await.unwrap_err().is_not_found());
    assert!(store.abort("r").await.unwrap_err().is_not_found());
    assert!(writer.write(Bytes::from_static(b"d")).await.unwrap_err().is_not_found());
    drop(writer);
    assert_eq!(names(&dir.path().join("ingest")), [""; 0]);
}

/// What a client may do with one reference.
#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Truncate(u64),
    Reopen,
    CommitWrong,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..600_000_usize).prop_map(Step::Write),
        1 => (0..900_000_u64).prop_map(Step::Truncate),
        2 => Just(Step::Reopen),
        1 => Just(Step::CommitWrong),
    ];
    proptest::collection::vec(step, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_order_of_calls_gives_the_bytes_written(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = store();
            let mut model: Vec<u8> = Vec::new();
            let mut writer = open(&store, "r").await.unwrap();
            for (i, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Write(len) => {
                        let data = vec![i as u8; len];
                        model.extend_from_slice(&data);
                        writer.write(data.into()).await.unwrap();
                    }
                    Step::Truncate(size) => {
                        let done = writer.truncate(size).await;
                        assert_eq!(done.is_ok(), size <= model.len() as u64);
                        if done.is_ok() {
                            model.truncate(size as usize);
                        }
                    }
                    Step::Reopen => {
                        drop(writer);
                        writer = open(&store, "r").await.unwrap();
                    }
                    Step::CommitWrong => {
                        let err = writer.commit(u64::MAX, None).await.unwrap_err();
                        assert!(err.is_failed_precondition());
                        writer = open(&store, "r").await.unwrap();
                    }
                }
                assert_eq!(writer.status().offset, model.len() as u64);
                assert_eq!(store.status("r").await.unwrap().offset, model.len() as u64);
                assert_eq!(writer.digest(), Digest::of(&model));
            }
            let digest = writer.commit(0, Some(&Digest::of(&model))).await.unwrap();
            assert_eq!(get(&store, &digest).await.unwrap(), model);
        });
    }
}
