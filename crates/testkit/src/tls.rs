//! A registry behind TLS, and the certificates for it.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::programs::system_program;

/// How long certificates are valid; tests take minutes.
const DAYS: &str = "2";

/// An authority (`ca.crt`), and certificates of a server and a client that it signed, each with its
/// key (`client.crt`, `client.key`).
#[derive(Debug)]
pub struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    /// New ones.
    ///
    /// # Panics
    /// Without openssl.
    pub fn make() -> Self {
        let made = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        let authority = ["-x509", "-days", DAYS, "-addext", "basicConstraints=critical,CA:TRUE"];
        made.request("ca.key", "ca.crt", "/CN=test authority", &authority);
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n";
        std::fs::write(made.path("ext"), names).expect("writing extensions");
        for name in ["server", "client"] {
            let (key, csr, crt) =
                (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
            made.request(&key, &csr, &format!("/CN={name}"), &[]);
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
                DAYS,
                "-extfile",
                "ext",
            ]);
        }
        made
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new key and a request for a certificate, or what `more` makes of it.
    fn request(&self, key: &str, out: &str, subject: &str, more: &[&str]) {
        let made = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let named = ["-keyout", key, "-out", out, "-subj", subject];
        self.openssl(&[&made[..], &named[..], more].concat());
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.dir.path()).output();
        let output = output.expect("openssl is needed for TLS tests");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// docker-registry behind TLS, stopped on drop.
#[derive(Debug)]
pub struct TlsRegistry {
    child: Child,
    authority: String,
    store: tempfile::TempDir,
}

impl TlsRegistry {
    /// Starts one with the server's certificate of `files`, which lets in those alone who show one
    /// of the same authority when it is to `ask_clients`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(files: &Certificates, ask_clients: bool) -> Self {
        let store = tempfile::tempdir().expect("a temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let port = free.expect("a free port").port();
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
        std::fs::write(&config_path, config).expect("writing the registry's config");
        let child = spawn(&config_path, &store.path().join("log"));
        let deadline = Instant::now() + Duration::from_secs(15);
        while TcpStream::connect(&authority).is_err() {
            assert!(Instant::now() < deadline, "docker-registry did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, authority, store }
    }

    /// `127.0.0.1:<port>`, the host part of references.
    pub fn host(&self) -> &str {
        &self.authority
    }

    /// Its log of requests.
    ///
    /// # Panics
    /// When there is none.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.store.path().join("log")).expect("the registry's log")
    }
}

impl Drop for TlsRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(config: &Path, log: &Path) -> Child {
    Command::new(system_program("docker-registry"))
        .arg("serve")
        .arg(config)
        .stdout(std::fs::File::create(log).expect("creating the registry's log"))
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is needed for TLS tests")
}
