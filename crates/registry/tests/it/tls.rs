//! TLS files: bad ones are named, and a server is not trusted without reason.

use gantry_core::Reference;
use gantry_registry::{Hosts, HostsOptions, Resolver, TlsFiles};

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
        let hosts = Hosts::new(HostsOptions { tls, ..HostsOptions::default() });
        let reference = Reference::parse("127.0.0.1:443/a:b").unwrap();
        let repository =
            Resolver::default().with_hosts(hosts).repository(&reference).await.unwrap();
        let err = repository.resolve().await.unwrap_err();
        assert!(err.message().contains("junk.pem"), "{err}");
        assert!(err.message().contains("https://127.0.0.1:443"), "{err}");
    }
}
