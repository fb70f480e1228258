//! TLS against the real registry: authorities, client certificates, and files that are unusable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_core::{Algorithm, Descriptor, Digest, Digester, Reference, media_types};
use gantry_errdefs::{Error, Result};
use gantry_registry::{Hosts, HostsOptions, Pushed, Resolver, TlsFiles};
use gantry_testkit::{Certificates, TlsRegistry};

fn resolver(tls: TlsFiles) -> Resolver {
    Resolver::default().with_hosts(Hosts::new(HostsOptions {
        tls,
        plain_http: Some(false),
        ..HostsOptions::default()
    }))
}

/// Asks for a tag that does not exist: NotFound says that the registry was reached.
async fn ask(resolver: &Resolver, authority: &str) -> Error {
    let reference = Reference::parse(&format!("{authority}/a:b")).unwrap();
    let outcome: Result<_> = resolver.repository(&reference).await.unwrap().resolve().await;
    outcome.unwrap_err()
}

#[tokio::test]
async fn unusable_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let junk = dir.path().join("junk.pem");
    std::fs::write(&junk, "not pem").unwrap();
    for tls in [
        TlsFiles { ca: vec![junk.clone()], ..TlsFiles::default() },
        TlsFiles { client: vec![(junk.clone(), None)], ..TlsFiles::default() },
        TlsFiles { ca: vec![dir.path().join("junk.pem.absent")], ..TlsFiles::default() },
    ] {
        let err = ask(&resolver(tls), "127.0.0.1:443").await;
        assert!(err.message().contains("junk.pem"), "{err}");
        assert!(err.message().contains("https://127.0.0.1:443"), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_believed_by_their_authority_only() {
    let files = Certificates::make();
    let server = TlsRegistry::start(&files, false);
    let known = TlsFiles { ca: vec![files.path("ca.crt")], ..TlsFiles::default() };
    let unchecked = TlsFiles { skip_verify: true, ..TlsFiles::default() };
    for tls in [known, unchecked] {
        let err = ask(&resolver(tls.clone()), server.host()).await;
        assert!(err.is_not_found(), "{tls:?}: {err}");
    }
    let started = Instant::now();
    let err = ask(&resolver(TlsFiles::default()), server.host()).await;
    assert!(err.is_unavailable() && err.message().contains("TLS"), "{err}");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "a bad certificate does not pass by itself"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_shown() {
    let files = Certificates::make();
    let server = TlsRegistry::start(&files, true);
    let ca = vec![files.path("ca.crt")];
    let (cert, key) = (files.path("client.crt"), files.path("client.key"));
    let pair = [std::fs::read(&cert).unwrap(), std::fs::read(&key).unwrap()].concat();
    std::fs::write(files.path("both.pem"), pair).unwrap();
    for client in [(cert, Some(key)), (files.path("both.pem"), None)] {
        let tls = TlsFiles { ca: ca.clone(), client: vec![client], ..TlsFiles::default() };
        let err = ask(&resolver(tls), server.host()).await;
        assert!(err.is_not_found(), "{err}");
    }
    let err = ask(&resolver(TlsFiles { ca, ..TlsFiles::default() }), server.host()).await;
    assert!(!err.is_not_found(), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_where_the_server_can() {
    let files = Certificates::make();
    let server = TlsRegistry::start(&files, false);
    let tls = TlsFiles { ca: vec![files.path("ca.crt")], ..TlsFiles::default() };
    let resolver = resolver(tls);
    let reference = Reference::parse(&format!("{}/a/b:c", server.host())).unwrap();
    let repository = resolver.repository(&reference).await.unwrap();
    // Up in several chunks, and down again while others are under way on the same connection.
    let bytes: Vec<u8> = (0..20_u32 << 20).map(|i| (i / 7) as u8).collect();
    let size = i64::try_from(bytes.len()).unwrap();
    let blob = Descriptor::new(media_types::OCI_LAYER, Digest::of(&bytes), size);
    let source = Arc::new(bytes::Bytes::from(bytes));
    let pushed = repository.push_blob(&blob, source.clone(), &[], &|_| ()).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let fetch = || async {
        let mut stream = repository.fetch(&blob, 0).await.unwrap();
        let mut digester = Digester::new(Algorithm::Sha256);
        while let Some(chunk) = stream.next().await.unwrap() {
            digester.update(&chunk);
        }
        assert_eq!(digester.finish(), blob.digest);
    };
    tokio::join!(fetch(), fetch(), fetch());
    let log = server.log();
    let requests: Vec<&str> = log.lines().filter(|l| l.contains("/v2/a/b/blobs/")).collect();
    assert!(requests.len() > 4, "{log}");
    assert!(requests.iter().all(|l| l.contains("HTTP/2.0")), "{log}");
}
