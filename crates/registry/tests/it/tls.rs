//! TLS against the real registry: authorities, client certificates, and files that are unusable.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_core::{Algorithm, Descriptor, Digest, Digester, Reference, media_types};
use gantry_errdefs::{Error, Result};
use gantry_registry::{Hosts, HostsOptions, Pushed, Resolver, TlsFiles};

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
        let err = ask(&resolver(tls.clone()), &server.authority).await;
        assert!(err.is_not_found(), "{tls:?}: {err}");
    }
    let started = Instant::now();
    let err = ask(&resolver(TlsFiles::default()), &server.authority).await;
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
        let err = ask(&resolver(tls), &server.authority).await;
        assert!(err.is_not_found(), "{err}");
    }
    let err = ask(&resolver(TlsFiles { ca, ..TlsFiles::default() }), &server.authority).await;
    assert!(!err.is_not_found(), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_where_the_server_can() {
    let files = Certificates::make();
    let server = TlsRegistry::start(&files, false);
    let tls = TlsFiles { ca: vec![files.path("ca.crt")], ..TlsFiles::default() };
    let resolver = resolver(tls);
    let reference = Reference::parse(&format!("{}/a/b:c", server.authority)).unwrap();
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

/// An authority, and certificates of a server and a client signed by it.
struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        made.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-subj",
            "/CN=test authority",
            "-days",
            "2",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ]);
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n";
        std::fs::write(made.path("ext"), names).unwrap();
        for name in ["server", "client"] {
            let (key, csr, crt) =
                (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
            let subject = format!("/CN={name}");
            made.openssl(&[
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-keyout",
                &key,
                "-out",
                &csr,
                "-subj",
                &subject,
            ]);
            made.openssl(&[
                "x509",
                "-req",
                "-in",
                &csr,
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-out",
                &crt,
                "-days",
                "2",
                "-extfile",
                "ext",
            ]);
        }
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.dir.path()).output();
        let output = output.expect("openssl is needed for TLS tests");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// docker-registry behind TLS.
struct TlsRegistry {
    child: Child,
    authority: String,
    store: tempfile::TempDir,
}

impl TlsRegistry {
    fn start(files: &Certificates, ask_clients: bool) -> Self {
        let store = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let authority = format!("127.0.0.1:{port}");
        let clients = if ask_clients {
            format!("    clientcas:\n      - {}\n", files.path("ca.crt").display())
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {authority}\n  tls:\n    certificate: {}\n    key: {}\n{clients}",
            store.path().display(),
            files.path("server.crt").display(),
            files.path("server.key").display(),
        );
        let config_path = store.path().join("config.yml");
        std::fs::write(&config_path, config).unwrap();
        let child = spawn(&config_path, &store.path().join("log"));
        let deadline = Instant::now() + Duration::from_secs(15);
        while TcpStream::connect(&authority).is_err() {
            assert!(Instant::now() < deadline, "docker-registry did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, authority, store }
    }

    /// Its log of requests.
    fn log(&self) -> String {
        std::fs::read_to_string(self.store.path().join("log")).unwrap()
    }
}

impl Drop for TlsRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(config: &Path, log: &Path) -> Child {
    Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdout(std::fs::File::create(log).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is needed for TLS tests")
}
