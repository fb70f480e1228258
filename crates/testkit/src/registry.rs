//! A real registry: Debian's docker-registry on a free port.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::http::{self, Response};
use crate::programs::system_program;

/// A free port may be taken by someone else before the registry binds it.
const START_ATTEMPTS_MAX: usize = 5;

/// The registry answers within milliseconds of its start.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// A running registry, stopped on drop.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    host: String,
    /// What to say to be let in; empty where nobody asks.
    authorization: String,
    dir: TempDir,
}

/// The bcrypt hash of [`Registry::PASSWORD`], as `htpasswd -B` makes it.
const PASSWORD_HASH: &str = "$2b$04$abcdefghijklmnopqrstuuh51NQfZBCY2nUs1Btlpp7LsFp/mk44C";

/// User and password, as HTTP wants them.
const AUTHORIZATION: &str = "Basic Z2FudHJ5OnMzY3JldDp4";

impl Registry {
    /// Who is let in by [`Registry::with_password`].
    pub const USER: &'static str = "gantry";

    /// The password of [`Registry::USER`]; with a colon, as passwords may have.
    pub const PASSWORD: &'static str = "s3cret:x";

    /// Starts docker-registry with a filesystem store of its own and waits until it answers.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// A registry that serves [`Registry::USER`] with [`Registry::PASSWORD`] alone.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn with_password() -> Self {
        Self::start_with(&format!("{}:{PASSWORD_HASH}\n", Self::USER))
    }

    fn start_with(users: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("gkr").tempdir().expect("a temporary directory");
        for _ in 0..START_ATTEMPTS_MAX {
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|l| l.local_addr())
                .expect("a free port")
                .port();
            let host = format!("127.0.0.1:{port}");
            let mut child = spawn(dir.path(), &host, users);
            if answers(&mut child, &host) {
                let authorization = if users.is_empty() { "" } else { AUTHORIZATION };
                return Self { child, host, authorization: authorization.to_owned(), dir };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        panic!("docker-registry did not start; its log:\n{log}");
    }

    /// `127.0.0.1:<port>`, the host part of references.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the registry keeps its files.
    pub fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    /// The status the registry answers `path` with, such as `/v2/busybox/manifests/1`.
    pub fn status_of(&self, path: &str) -> u16 {
        let accept = "application/vnd.oci.image.index.v1+json, \
            application/vnd.oci.image.manifest.v1+json, \
            application/vnd.docker.distribution.manifest.v2+json";
        self.request("HEAD", path, &[("Accept", accept)], b"").status
    }

    /// Sends one request as someone who is let in.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut headers = headers.to_vec();
        if !self.authorization.is_empty() {
            headers.push(("Authorization", &self.authorization));
        }
        http::request(&self.host, method, path, &headers, body)
    }

    /// Puts a manifest or the bytes of an upload.
    pub(crate) fn put(&self, path: &str, media_type: &str, body: &[u8]) {
        let response = self.request("PUT", path, &[("Content-Type", media_type)], body);
        assert_eq!(response.status, 201, "PUT http://{}{path}: {response:?}", self.host);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, host: &str, users: &str) -> Child {
    let store = dir.join("store");
    let mut config = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
         delete:\n    enabled: true\nhttp:\n  addr: {host}\n",
        store.display()
    );
    if !users.is_empty() {
        let path = dir.join("users");
        std::fs::write(&path, users).expect("writing the registry's users");
        let path = path.display();
        config.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {path}\n"));
    }
    let config_path = dir.join("config.yml");
    std::fs::create_dir_all(&store).expect("making the store");
    std::fs::write(&config_path, config).expect("writing the registry's config");
    let log = std::fs::File::create(dir.join("log")).expect("creating the registry's log");
    Command::new(system_program("docker-registry"))
        .arg("serve")
        .arg(&config_path)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("starting docker-registry")
}

fn answers(child: &mut Child, host: &str) -> bool {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return false;
        }
        if http::try_request(host, "GET", "/v2/", &[], b"")
            .is_ok_and(|r| [200, 401].contains(&r.status))
        {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
