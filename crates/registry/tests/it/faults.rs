//! Down, refusing, wrong, cut and overloaded hosts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Class, Result};
use gantry_registry::{BlobStream, Hosts};

use crate::fake::{Answer, Fake, Request, hosts, repository};

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

fn manifest_answer() -> Answer {
    Answer::body(MANIFEST)
        .with("Content-Type", media_types::OCI_MANIFEST)
        .with("Docker-Content-Digest", Digest::of(MANIFEST.as_bytes()))
}

async fn collect(stream: Result<BlobStream>) -> Result<Vec<u8>> {
    let mut stream = stream?;
    let mut out = Vec::new();
    while let Some(chunk) = stream.next().await? {
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}

fn blob(len: usize) -> (Vec<u8>, Descriptor) {
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let descriptor = Descriptor::new(media_types::OCI_LAYER_GZIP, Digest::of(&bytes), len as i64);
    (bytes, descriptor)
}

#[tokio::test]
async fn resolves_by_head_alone() {
    let fake = Fake::start(|_| manifest_answer()).await;
    let resolved = fake.repository().await.resolve().await.unwrap();
    assert_eq!(resolved.descriptor.digest, Digest::of(MANIFEST.as_bytes()));
    assert_eq!(resolved.descriptor.size, MANIFEST.len() as i64);
    assert_eq!(fake.seen(), ["HEAD /v2/a/b/manifests/tag"]);
}

#[tokio::test]
async fn computes_what_the_host_does_not_tell() {
    let get = |request: &Request| match request.method.as_str() {
        "HEAD" => Answer::status(405),
        _ => Answer::body(MANIFEST).with("Content-Type", "application/json; charset=utf-8"),
    };
    let fake = Fake::start(get).await;
    let resolved = fake.repository().await.resolve().await.unwrap();
    assert_eq!(resolved.descriptor.digest, Digest::of(MANIFEST.as_bytes()));
    assert_eq!(resolved.descriptor.media_type, media_types::OCI_MANIFEST);
    assert_eq!(resolved.bytes.unwrap(), MANIFEST.as_bytes());

    let without_digest =
        |_: &Request| Answer::body(MANIFEST).with("Content-Type", media_types::OCI_MANIFEST);
    let fake = Fake::start(without_digest).await;
    let resolved = fake.repository().await.resolve().await.unwrap();
    assert_eq!(resolved.descriptor.digest, Digest::of(MANIFEST.as_bytes()));
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn refuses_schema1_by_name() {
    let fake = Fake::start(|_| {
        Answer::body("{}")
            .with("Content-Type", media_types::DOCKER_SCHEMA1)
            .with("Docker-Content-Digest", Digest::of(b"something else"))
    })
    .await;
    let err = fake.repository().await.resolve().await.unwrap_err();
    assert!(err.is_invalid_argument() && err.message().contains("schema 1"), "{err}");
}

#[tokio::test]
async fn every_kind_of_failing_mirror_is_passed_over() {
    let real = Fake::start(|_| manifest_answer()).await;
    let mut mirrors = Vec::new();
    for status in [401, 403, 404, 429, 500, 503] {
        mirrors.push(Fake::start(move |_| Answer::status(status)).await.authority);
    }
    mirrors.push(Fake::start(|_| Answer { hang_up: true, ..Answer::default() }).await.authority);
    let wrong = Fake::start(|_| manifest_answer().with("Docker-Content-Digest", "x")).await;
    let plain_as_tls = format!("https://{}", wrong.authority);
    // A port that nobody listens on.
    let down = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut text = format!("server = \"http://{}\"\n", real.authority);
    for url in mirrors.iter().map(|m| format!("http://{m}")) {
        text += &format!("[host.\"{url}\"]\n");
    }
    text += &format!("[host.\"http://{down}\"]\n[host.\"{plain_as_tls}\"]\n");
    let dir = tempfile::tempdir().unwrap();
    let hosts = hosts(&dir, "reg.example", &text);
    let started = Instant::now();
    let resolved = repository("reg.example/a/b:tag", hosts).await.resolve().await.unwrap();
    assert_eq!(resolved.host, format!("http://{}", real.authority));
    assert!(started.elapsed() < Duration::from_secs(5), "no host is waited for");
}

#[tokio::test]
async fn mirrors_are_told_the_registry_and_capabilities_hold() {
    let (bytes, descriptor) = blob(10);
    let body = bytes.clone();
    let mirror = Fake::start(move |_| Answer::body(body.clone())).await;
    let origin = Fake::start(|_| manifest_answer()).await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://{}\".header]\nx-mirror = \"yes\"\n",
        origin.authority, mirror.authority, mirror.authority
    );
    let dir = tempfile::tempdir().unwrap();
    let repository = repository("reg.example/a/b:tag", hosts(&dir, "reg.example", &text)).await;
    repository.resolve().await.unwrap();
    assert!(mirror.seen().is_empty(), "a pull-only mirror may not say what a tag is");
    assert_eq!(collect(repository.fetch(&descriptor, 0).await).await.unwrap(), bytes);
    let request = &mirror.requests()[0];
    assert!(request.target.ends_with("?ns=reg.example"), "{}", request.target);
    assert_eq!(request.header("x-mirror"), Some("yes"));
    assert!(origin.requests().iter().all(|r| r.header("x-mirror").is_none()));
}

#[tokio::test]
async fn errors_name_every_host_and_take_the_last_ones_class() {
    let mirror = Fake::start(|_| Answer::status(503)).await;
    let origin = Fake::start(|_| {
        let mut answer = Answer::status(404);
        answer.body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag"}]}"#.to_vec();
        answer
    })
    .await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        origin.authority, mirror.authority
    );
    let dir = tempfile::tempdir().unwrap();
    let repository = repository("reg.example/a/b:tag", hosts(&dir, "reg.example", &text)).await;
    let (_, descriptor) = blob(4);
    let err = collect(repository.fetch(&descriptor, 0).await).await.unwrap_err();
    assert_eq!(err.class(), Class::NotFound);
    for part in ["503", "MANIFEST_UNKNOWN: no such tag", "reg.example/a/b", "sha256:"] {
        assert!(err.message().contains(part), "{part}: {err}");
    }
}

#[tokio::test]
async fn waits_as_long_as_the_host_asks() {
    let count = AtomicUsize::new(0);
    let fake = Fake::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::status(429).with("Retry-After", 1),
        1 => Answer::status(503),
        _ => manifest_answer(),
    })
    .await;
    let started = Instant::now();
    fake.repository().await.resolve().await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    let greedy = Fake::start(|_| Answer::status(429).with("Retry-After", 3600)).await;
    let err = greedy.repository().await.resolve().await.unwrap_err();
    assert_eq!(err.class(), Class::ResourceExhausted);
    assert_eq!(greedy.seen().len(), 1, "nobody waits an hour");
}

#[tokio::test]
async fn gives_up_after_the_named_number_of_walks() {
    let fake = Fake::start(|_| Answer::status(502)).await;
    let err = fake.repository().await.resolve().await.unwrap_err();
    assert!(err.is_unavailable() && err.message().contains("502"), "{err}");
    assert_eq!(fake.seen().len(), gantry_registry::limits::ATTEMPTS_MAX as usize);
}

/// A host that cuts every answer after `step` bytes; `ranges` says whether it honours Range.
async fn cutting(bytes: Vec<u8>, step: usize, ranges: bool, etag: &'static str) -> Fake {
    let sent = Arc::new(AtomicUsize::new(0));
    Fake::start(move |request| {
        let total = bytes.len();
        let start = request.range_start().filter(|_| ranges).unwrap_or(0);
        // Without ranges each answer gets one step further than the last.
        let end = if ranges { start + step } else { sent.fetch_add(step, Ordering::SeqCst) + step };
        let end = end.min(total);
        let body = bytes[start..].to_vec();
        let mut answer = Answer::body(body).with("ETag", etag);
        if ranges && request.range_start().is_some() {
            answer.status = 206;
            answer = answer.with("Content-Range", format!("bytes {start}-{}/{total}", total - 1));
        }
        if end < total { answer.cut(end - start) } else { answer }
    })
    .await
}

#[tokio::test]
async fn resumes_cut_blobs_by_range() {
    let (bytes, descriptor) = blob(100_000);
    let fake = cutting(bytes.clone(), 21_000, true, "\"e1\"").await;
    let repository = fake.repository().await;
    assert_eq!(collect(repository.fetch(&descriptor, 0).await).await.unwrap(), bytes);
    let requests = fake.requests();
    assert_eq!(requests.len(), 5);
    assert_eq!(requests[1].header("if-range"), Some("\"e1\""));
    let sent: Vec<usize> = requests.iter().filter_map(Request::range_start).collect();
    assert!(sent.is_sorted() && sent[0] > 0, "{sent:?}");
    let tail = collect(repository.fetch(&descriptor, 99_990).await).await.unwrap();
    assert_eq!(tail, bytes[99_990..]);
}

#[tokio::test]
async fn drops_what_it_has_where_ranges_are_ignored() {
    let (bytes, descriptor) = blob(100_000);
    let fake = cutting(bytes.clone(), 40_000, false, "W/\"weak\"").await;
    let repository = fake.repository().await;
    assert_eq!(collect(repository.fetch(&descriptor, 0).await).await.unwrap(), bytes);
    assert!(
        fake.requests().iter().all(|r| r.header("if-range").is_none()),
        "weak tags are no proof"
    );
}

#[tokio::test]
async fn a_blob_that_never_comes_is_an_error() {
    let (bytes, descriptor) = blob(1000);
    let fake = Fake::start(move |_| Answer::body(bytes.clone()).cut(0)).await;
    let repository = fake.repository().await;
    let err = collect(repository.fetch(&descriptor, 0).await).await.unwrap_err();
    assert!(err.is_unavailable(), "{err}");
    assert!(err.message().contains("0 of 1000 bytes"), "{err}");
}

#[tokio::test]
async fn wrong_sizes_and_parts_are_refused() {
    let (bytes, descriptor) = blob(1000);
    let longer = [bytes.as_slice(), b"more"].concat();
    let cases: Vec<(u64, Answer)> = vec![
        (0, Answer::body(longer)),
        (0, Answer::body(bytes[..10].to_vec())),
        (0, Answer::body(bytes.clone()).with("Content-Encoding", "gzip")),
        (5, Answer { status: 206, ..Answer::body(bytes[5..].to_vec()) }),
        (
            5,
            Answer { status: 206, ..Answer::body(bytes[7..].to_vec()) }
                .with("Content-Range", "bytes 7-999/1000"),
        ),
        (
            5,
            Answer { status: 206, ..Answer::body(bytes[5..].to_vec()) }
                .with("Content-Range", "bytes 5-999/2000"),
        ),
    ];
    for (offset, answer) in cases {
        let shown = format!("{:?}", answer.headers);
        let fake = Fake::start(move |_| answer.clone()).await;
        let repository = fake.repository().await;
        let err = collect(repository.fetch(&descriptor, offset).await).await.unwrap_err();
        assert_eq!(err.class(), Class::DataLoss, "{shown}: {err}");
    }
    let fake = Fake::start(|_| Answer::status(500)).await;
    let err = fake.repository().await.fetch(&descriptor, 1001).await.unwrap_err();
    assert_eq!(err.class(), Class::OutOfRange);
    let end = fake.repository().await.fetch(&descriptor, 1000).await;
    assert!(collect(end).await.unwrap().is_empty());
}

#[tokio::test]
async fn manifests_are_checked() {
    let wrong = Fake::start(|_| Answer::body("{}")).await;
    let digest = Digest::of(MANIFEST.as_bytes());
    let size = MANIFEST.len() as i64;
    let descriptor = Descriptor::new(media_types::OCI_MANIFEST, digest, size);
    let err = wrong.repository().await.manifest(&descriptor).await.unwrap_err();
    assert_eq!(err.class(), Class::DataLoss, "{err}");
    let huge = Descriptor { size: 9 << 20, ..descriptor.clone() };
    let err = wrong.repository().await.manifest(&huge).await.unwrap_err();
    assert_eq!(err.class(), Class::ResourceExhausted);
    let flood = Fake::start(|_| Answer::body(vec![b' '; 9 << 20])).await;
    let err = flood.repository().await.manifest(&descriptor).await.unwrap_err();
    assert_eq!(err.class(), Class::ResourceExhausted, "{err}");
    let right = Fake::start(|_| manifest_answer()).await;
    assert_eq!(right.repository().await.manifest(&descriptor).await.unwrap(), MANIFEST.as_bytes());
}

#[tokio::test]
async fn redirects_carry_no_secrets() {
    let (bytes, descriptor) = blob(50);
    let body = bytes.clone();
    let cdn = Fake::start(move |_| Answer::body(body.clone())).await;
    let location = format!("http://{}/blob?sig=1", cdn.authority);
    let origin = Fake::start(move |request| match request.header("authorization") {
        None => Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) if request.path() == "/v2/a/b/blobs/loop" => Answer::status(307),
        Some(_) => Answer::status(307).with("Location", &location),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!("server = \"http://{}\"\n[header]\nx-secret = \"s\"\n", origin.authority);
    let credential =
        gantry_registry::Credential::Basic { username: "u".into(), secret: "p".into() };
    let table = [(origin.authority.clone(), credential)].into();
    let resolver = gantry_registry::Resolver::new(gantry_registry::ResolverOptions {
        hosts: hosts(&dir, "reg.example", &text),
        credentials: Arc::new(gantry_registry::StaticCredentials(table)),
    });
    let reference = "reg.example/a/b:tag".parse().unwrap();
    let repository = resolver.repository(&reference).await.unwrap();
    assert_eq!(collect(repository.fetch(&descriptor, 0).await).await.unwrap(), bytes);
    let at_cdn = &cdn.requests()[0];
    assert_eq!(at_cdn.header("authorization"), None);
    assert_eq!(at_cdn.header("x-secret"), None);
    assert_eq!(at_cdn.target, "/blob?sig=1");
    assert_eq!(origin.requests()[1].header("x-secret"), Some("s"));
}

#[tokio::test]
async fn foreign_layers_come_from_their_address() {
    let (bytes, mut descriptor) = blob(20);
    let body = bytes.clone();
    let vendor = Fake::start(move |_| Answer::body(body.clone())).await;
    let registry = Fake::start(|_| Answer::status(404)).await;
    descriptor.urls = vec!["no url".into(), format!("http://{}/layer", vendor.authority)];
    let repository = registry.repository().await;
    assert_eq!(collect(repository.fetch(&descriptor, 0).await).await.unwrap(), bytes);
    assert_eq!(vendor.seen(), ["GET /layer"]);
}

#[tokio::test]
async fn endless_redirects_end() {
    let fake = Fake::start(|r| Answer::status(302).with("Location", r.path())).await;
    let err = fake.repository().await.resolve().await.unwrap_err();
    assert!(err.message().contains("redirected"), "{err}");
    assert_eq!(fake.seen().len(), gantry_registry::limits::REDIRECTS_MAX + 1);
}

#[tokio::test]
async fn references_without_object_and_hostless_capabilities_are_errors() {
    let bare = repository("reg.example/a", Hosts::default()).await;
    assert!(bare.resolve().await.unwrap_err().is_invalid_argument());
    let dir = tempfile::tempdir().unwrap();
    let text = "server = \"http://127.0.0.1:1\"\ncapabilities = [\"push\"]\n";
    let push_only = repository("reg.example/a:t", hosts(&dir, "reg.example", text)).await;
    assert!(push_only.resolve().await.unwrap_err().is_not_found());
}
