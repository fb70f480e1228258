//! Pushing to a registry that fails to order.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::Class;
use gantry_registry::Pushed;
use gantry_registry::limits::{MISSES_MIN, MONOLITHIC_PUSH_MAX, PUSH_CHUNK, UNASKED_PUSH_MAX};

use crate::fake::{Answer, Fake};

fn blob(len: usize) -> (Bytes, Descriptor) {
    let bytes = Bytes::from((0..len).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
    let descriptor = Descriptor::new(media_types::OCI_LAYER, Digest::of(&bytes), len as i64);
    (bytes, descriptor)
}

#[tokio::test]
async fn what_is_there_is_not_sent() {
    let fake = Fake::start(|_| Answer::status(200)).await;
    let (bytes, descriptor) = blob(10);
    let repository = fake.repository().await;
    let pushed = repository.push_blob(&descriptor, Arc::new(bytes), &[], &|_| {}).await.unwrap();
    assert_eq!(pushed, Pushed::Existed);
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_repository_without_any_is_not_asked_for_small_blobs() {
    let there: Arc<AtomicBool> = Arc::default();
    let has = there.clone();
    let fake = Fake::start(move |request| match request.method.as_str() {
        "HEAD" if has.load(Ordering::SeqCst) => Answer::status(200),
        "POST" => Answer::status(202).with("Location", "/upload"),
        "PUT" => Answer::status(201),
        _ => Answer::status(404),
    })
    .await;
    let repository = fake.repository().await;
    let push = async |len: usize| {
        let (bytes, descriptor) = blob(len);
        let before = fake.seen().len();
        let pushed = repository.push_blob(&descriptor, Arc::new(bytes), &[], &|_| {}).await;
        let requests = fake.requests()[before..].iter().map(|r| r.method.clone()).collect();
        (pushed.unwrap(), requests)
    };
    let asked = |pushed: Pushed, methods: &[&str]| {
        (pushed, methods.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>())
    };
    for n in 0..MISSES_MIN as usize {
        assert_eq!(push(n + 1).await, asked(Pushed::Uploaded, &["HEAD", "POST", "PUT"]));
    }
    assert_eq!(push(100).await, asked(Pushed::Uploaded, &["POST", "PUT"]));
    // A big one is worth the question, and one that is there makes small ones worth it again.
    there.store(true, Ordering::SeqCst);
    let big = usize::try_from(UNASKED_PUSH_MAX).unwrap() + 1;
    assert_eq!(push(big).await, asked(Pushed::Existed, &["HEAD"]));
    assert_eq!(push(101).await, asked(Pushed::Existed, &["HEAD"]));
}

#[tokio::test]
async fn blobs_are_mounted_from_neighbours() {
    let fake = Fake::start(|request| match request.method.as_str() {
        "POST" if request.target.contains("from=has%2Fit") => Answer::status(201),
        "POST" => Answer::status(400),
        _ => Answer::status(404),
    })
    .await;
    let (bytes, descriptor) = blob(10);
    let from = ["a/b".to_owned(), "odd".to_owned(), "has/it".to_owned()];
    let repository = fake.repository().await;
    let pushed = repository.push_blob(&descriptor, Arc::new(bytes), &from, &|_| {}).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted);
    assert_eq!(fake.seen().len(), 3, "itself is not asked: {:?}", fake.seen());
}

#[tokio::test]
async fn small_blobs_go_in_one_request() {
    let (bytes, descriptor) = blob(1000);
    let fake = Fake::start(|request| match request.method.as_str() {
        "POST" => Answer::status(202).with("Location", "/upload/1?state=x"),
        "PUT" => Answer::status(201),
        _ => Answer::status(404),
    })
    .await;
    let repository = fake.repository().await;
    let pushed =
        repository.push_blob(&descriptor, Arc::new(bytes.clone()), &[], &|_| {}).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let put = &fake.requests()[2];
    assert!(put.target.starts_with("/upload/1?state=x&digest=sha256%3A"), "{}", put.target);
    assert_eq!(put.body, bytes);
}

#[tokio::test]
async fn broken_chunks_are_resumed() {
    let (bytes, descriptor) = blob(usize::try_from(MONOLITHIC_PUSH_MAX + PUSH_CHUNK).unwrap() + 7);
    let stored: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (store, broke) = (stored.clone(), AtomicBool::new(false));
    let fake = Fake::start(move |request| {
        let mut stored = store.lock().unwrap();
        let range = |stored: &Vec<u8>| format!("0-{}", stored.len().saturating_sub(1));
        match request.method.as_str() {
            "POST" => Answer::status(202).with("Location", "/upload"),
            "PATCH" => {
                if !stored.is_empty() && !broke.swap(true, Ordering::SeqCst) {
                    // Takes half of the second chunk and breaks.
                    let half = request.body.len() / 2;
                    stored.extend_from_slice(&request.body[..half]);
                    return Answer { hang_up: true, ..Answer::default() };
                }
                stored.extend_from_slice(&request.body);
                Answer::status(202).with("Location", "/upload").with("Range", range(&stored))
            }
            "GET" => Answer::status(204).with("Location", "/upload").with("Range", range(&stored)),
            "PUT" => Answer::status(201).with("Docker-Content-Digest", Digest::of(&stored)),
            _ => Answer::status(404),
        }
    })
    .await;
    let repository = fake.repository().await;
    let seen = AtomicU64::new(0);
    let progress = |n: u64| seen.store(n, Ordering::SeqCst);
    let pushed =
        repository.push_blob(&descriptor, Arc::new(bytes.clone()), &[], &progress).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(*stored.lock().unwrap(), bytes);
    assert_eq!(seen.load(Ordering::SeqCst), bytes.len() as u64);
}

#[tokio::test]
async fn another_digest_is_data_loss() {
    let fake = Fake::start(|request| match request.method.as_str() {
        "POST" => Answer::status(202).with("Location", "/upload"),
        "PUT" => Answer::status(201).with("Docker-Content-Digest", Digest::of(b"other")),
        _ => Answer::status(404),
    })
    .await;
    let (bytes, descriptor) = blob(5);
    let repository = fake.repository().await;
    let err = repository.push_blob(&descriptor, Arc::new(bytes), &[], &|_| {}).await.unwrap_err();
    assert_eq!(err.class(), Class::DataLoss, "{err}");
}

#[tokio::test]
async fn short_content_and_refusals_are_errors() {
    let fake = Fake::start(|request| match request.method.as_str() {
        "POST" => Answer::status(202).with("Location", "/upload"),
        "PUT" => Answer::status(201),
        _ => Answer::status(404),
    })
    .await;
    let (bytes, mut descriptor) = blob(5);
    descriptor.size = 10;
    let repository = fake.repository().await;
    assert!(repository.push_blob(&descriptor, Arc::new(bytes), &[], &|_| {}).await.is_err());
    let denied = Fake::start(|request| match request.method.as_str() {
        "HEAD" => Answer::status(404),
        _ => Answer::status(403),
    })
    .await;
    let (bytes, descriptor) = blob(5);
    let repository = denied.repository().await;
    let err = repository.push_blob(&descriptor, Arc::new(bytes), &[], &|_| {}).await.unwrap_err();
    assert_eq!(err.class(), Class::PermissionDenied);
}

#[tokio::test]
async fn tags_move_and_same_tags_do_not() {
    let body = Bytes::from_static(b"{}");
    let descriptor = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(&body), 2);
    let puts = Arc::new(AtomicUsize::new(0));
    for (at_tag, pushed) in
        [(Digest::of(b"old"), Pushed::Uploaded), (Digest::of(&body), Pushed::Existed)]
    {
        let puts = puts.clone();
        let fake = Fake::start(move |request| match request.method.as_str() {
            "PUT" => {
                puts.fetch_add(1, Ordering::SeqCst);
                Answer::status(201)
            }
            _ => Answer::status(200).with("Docker-Content-Digest", &at_tag),
        })
        .await;
        let repository = fake.repository().await;
        let outcome = repository.push_manifest(&descriptor, body.clone(), Some("tag")).await;
        assert_eq!(outcome.unwrap(), pushed);
    }
    assert_eq!(puts.load(Ordering::SeqCst), 1);
}
