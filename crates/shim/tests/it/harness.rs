//! A daemon's side of a shim, small: bundle, `start`, task client, and an event server.

use std::future::Future;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gantry_api::Payload as _;
use gantry_api::containerd::events::{TaskExit, TaskOom};
use gantry_api::containerd::runc::v1::Options;
use gantry_api::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_api::containerd::services::events::ttrpc::v1::events_ttrpc::{Events, EventsServer};
use gantry_api::containerd::task::v3 as api;
use gantry_api::containerd::task::v3::task_ttrpc::TaskClient;
use gantry_ttrpc::{Client, Context, Result, Server};
use prost_types::Any;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_containerd-shim-runc-v2");

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a test on a current-thread runtime; it fails when it takes longer than any may.
pub(crate) fn run(test: impl Future<Output = ()>) {
    run_for(1, test);
}

/// As [`run`], with time for a number of rounds.
pub(crate) fn run_for(rounds: u32, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let limit = PATIENCE * (3 + rounds / 10);
    runtime.expect("a runtime").block_on(async {
        tokio::time::timeout(limit, test).await.expect("the test ends in time");
    });
}

/// Waits until `check` gives something.
pub(crate) async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < until, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What came from the shim, in order.
#[derive(Default)]
pub(crate) struct Received(Mutex<Vec<(String, Any)>>);

impl Events for Received {
    async fn forward(&self, ctx: Context, request: ForwardRequest) -> Result<()> {
        assert_eq!(ctx.get("containerd-namespace-ttrpc"), Some("test"));
        let envelope = request.envelope.expect("an envelope");
        assert_eq!(envelope.namespace, "test");
        let event = envelope.event.expect("an event");
        self.0.lock().expect("lock").push((envelope.topic, event));
        Ok(())
    }
}

impl Received {
    pub(crate) fn topics(&self) -> Vec<String> {
        self.0.lock().expect("lock").iter().map(|(topic, _)| topic.clone()).collect()
    }

    pub(crate) fn exits(&self) -> Vec<TaskExit> {
        let all = self.0.lock().expect("lock");
        all.iter().filter_map(|(_, event)| event.unpack().expect("decodes")).collect()
    }

    pub(crate) fn ooms(&self) -> Vec<TaskOom> {
        let all = self.0.lock().expect("lock");
        all.iter().filter_map(|(_, event)| event.unpack().expect("decodes")).collect()
    }

    pub(crate) async fn until(&self, topic: &str) {
        eventually(topic, || self.topics().iter().any(|t| t == topic).then_some(())).await;
    }
}

/// A directory that stands for a daemon: bundles, sockets, runc's records.
pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) events: Arc<Received>,
    /// The shim's program.
    pub(crate) binary: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Daemon {
    /// A daemon that listens for events.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("shim").tempdir().expect("a directory");
        let binary = PathBuf::from(BINARY);
        let mut daemon = Self { dir, events: Arc::default(), binary, server: None };
        daemon.listen();
        daemon
    }

    pub(crate) fn address(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }

    fn ttrpc_address(&self) -> PathBuf {
        self.dir.path().join("d.sock.ttrpc")
    }

    /// Serves events, on the same path every time.
    pub(crate) fn listen(&mut self) {
        let listener = tokio::net::UnixListener::bind(self.ttrpc_address()).expect("binds");
        let server = Server::builder().service(EventsServer::new(self.events.clone())).build();
        let serve = async move { server.serve(listener, std::future::pending()).await };
        self.server = Some(tokio::spawn(serve));
    }

    /// Goes away, as a daemon does that is killed.
    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
        std::fs::remove_file(self.ttrpc_address()).expect("was listening");
    }

    /// A bundle whose init runs `args`.
    pub(crate) fn bundle(&self, args: &[&str]) -> Bundle {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("gantry-test-{}-{n}", std::process::id());
        let path = self.dir.path().join(&id);
        let bin = path.join("rootfs/bin");
        std::fs::create_dir_all(&bin).expect("made");
        for directory in ["proc", "sys", "dev", "tmp"] {
            std::fs::create_dir(path.join("rootfs").join(directory)).expect("made");
        }
        std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for name in ["sh", "cat", "sleep", "true", "echo", "stty", "head", "yes", "id", "env"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).expect("linked");
        }
        let bundle = Bundle { id, path, spec: spec(args) };
        bundle.save();
        bundle
    }

    fn command(&self, bundle: &Bundle) -> Command {
        let mut command = Command::new(&self.binary);
        command.current_dir(&bundle.path).args(["-namespace", "test", "-id", &bundle.id]);
        command.arg("-address").arg(self.address());
        command.env("TTRPC_ADDRESS", self.ttrpc_address());
        command.env("GANTRY_SHIM_SOCKET_DIR", self.dir.path().join("s"));
        command.env_remove("MAX_SHIM_VERSION");
        command.stdin(Stdio::null());
        command
    }

    /// Runs `start` with whatever `change` adds.
    pub(crate) fn start_with(&self, bundle: &Bundle, change: impl FnOnce(&mut Command)) -> Output {
        let mut command = self.command(bundle);
        change(&mut command);
        command.arg("start").output().expect("the shim runs")
    }

    /// Runs the `delete` verb.
    pub(crate) fn delete_verb(&self, bundle: &Bundle) -> Output {
        self.command(bundle).arg("delete").output().expect("the shim runs")
    }

    /// Starts a shim and connects to it.
    pub(crate) async fn shim(&self, bundle: &Bundle) -> Shim {
        let out = self.start_with(bundle, |_| {});
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let address = String::from_utf8(out.stdout).expect("text");
        self.connect(&address, bundle).await
    }

    /// Connects to a shim that was started for `bundle`.
    pub(crate) async fn connect(&self, address: &str, bundle: &Bundle) -> Shim {
        let task = TaskClient::new(Client::connect(address).expect("the shim listens"));
        let request = api::ConnectRequest { id: bundle.id.clone() };
        let pid = task.connect(&context(), &request).await.expect("answers").shim_pid;
        let root = self.dir.path().join("runc").display().to_string();
        Shim { task, pid, address: address.to_owned(), root }
    }
}

/// One container's directory.
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(crate) spec: Value,
}

impl Bundle {
    pub(crate) fn save(&self) {
        std::fs::write(self.path.join("config.json"), self.spec.to_string()).expect("written");
    }

    /// Makes a FIFO beside the bundle's files and returns its path.
    pub(crate) fn fifo(&self, name: &str) -> String {
        let path = self.path.join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).expect("a FIFO");
        path.display().to_string()
    }
}

pub(crate) fn context() -> Context {
    Context::with_timeout(PATIENCE)
}

/// A running shim.
pub(crate) struct Shim {
    pub(crate) task: TaskClient,
    pub(crate) pid: u32,
    pub(crate) address: String,
    root: String,
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A test that failed must not leave it; one that passed has ended it.
        let _ = Command::new("kill").args(["-9", &self.pid.to_string()]).output();
    }
}

impl Shim {
    pub(crate) fn request(&self, bundle: &Bundle) -> api::CreateTaskRequest {
        let options = Options { root: self.root.clone(), ..Options::default() };
        api::CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.path.display().to_string(),
            options: Some(Any::pack(&options)),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, bundle: &Bundle) -> u32 {
        self.create_with(self.request(bundle)).await
    }

    pub(crate) async fn create_with(&self, request: api::CreateTaskRequest) -> u32 {
        self.task.create(&context(), &request).await.expect("created").pid
    }

    pub(crate) async fn start(&self, id: &str, exec_id: &str) -> u32 {
        self.try_start(id, exec_id).await.expect("started")
    }

    pub(crate) async fn try_start(&self, id: &str, exec_id: &str) -> Result<u32> {
        let request = api::StartRequest { id: id.into(), exec_id: exec_id.into() };
        Ok(self.task.start(&context(), &request).await?.pid)
    }

    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let request = api::WaitRequest { id: id.into(), exec_id: exec_id.into() };
        self.task.wait(&context(), &request).await.expect("ends").exit_status
    }

    pub(crate) async fn exec(&self, id: &str, exec_id: &str, args: &[&str]) -> Result<()> {
        self.exec_with(exec_request(id, exec_id, args)).await
    }

    pub(crate) async fn exec_with(&self, request: api::ExecProcessRequest) -> Result<()> {
        self.task.exec(&context(), &request).await
    }

    pub(crate) async fn kill(&self, id: &str, exec_id: &str, signal: u32) -> Result<()> {
        let request =
            api::KillRequest { id: id.into(), exec_id: exec_id.into(), signal, all: false };
        self.task.kill(&context(), &request).await
    }

    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<api::DeleteResponse> {
        let request = api::DeleteRequest { id: id.into(), exec_id: exec_id.into() };
        self.task.delete(&context(), &request).await
    }

    pub(crate) async fn state(&self, id: &str, exec_id: &str) -> Result<api::StateResponse> {
        let request = api::StateRequest { id: id.into(), exec_id: exec_id.into() };
        self.task.state(&context(), &request).await
    }

    /// Ends the shim and checks that it went, with its socket.
    pub(crate) async fn shutdown(&self, id: &str) {
        let request = api::ShutdownRequest { id: id.into(), now: false };
        // It may be gone before it has answered.
        let _ = self.task.shutdown(&context(), &request).await;
        let alive = PathBuf::from(format!("/proc/{}/exe", self.pid));
        // A zombie has no executable: its parent is whoever the machine has as init.
        eventually("the shim's end", || std::fs::read_link(&alive).is_err().then_some(())).await;
        let socket = self.address.trim_start_matches("unix://");
        assert!(!Path::new(socket).exists(), "the socket stays");
    }

    /// Kills what runs, deletes it, ends the shim.
    pub(crate) async fn finish(&self, bundle: &Bundle) {
        // Gone already in some tests.
        let _ = self.kill(&bundle.id, "", 9).await;
        self.wait(&bundle.id, "").await;
        self.delete(&bundle.id, "").await.expect("deleted");
        self.shutdown(&bundle.id).await;
        assert_no_cgroup(&bundle.id);
    }
}

/// The container's cgroups are gone.
pub(crate) fn assert_no_cgroup(id: &str) {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups");
    for hierarchy in hierarchies.flatten() {
        let path = hierarchy.path().join(id);
        assert!(!path.exists(), "{} is left", path.display());
    }
}

pub(crate) fn exec_request(id: &str, exec_id: &str, args: &[&str]) -> api::ExecProcessRequest {
    let process = process(args);
    api::ExecProcessRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
        }),
        ..Default::default()
    }
}

/// Reads a FIFO to its end, on a thread of its own.
pub(crate) fn read_fifo(path: &str) -> JoinHandle<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || std::fs::read_to_string(path).expect("reads"))
}

/// Opens a FIFO for writing; it must have a reader.
pub(crate) fn write_fifo(path: &str) -> std::fs::File {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).custom_flags(libc_nonblock());
    options.open(path).expect("someone reads")
}

fn libc_nonblock() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a flag")
}

fn process(args: &[&str]) -> Value {
    json!({
        "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm"], "noNewPrivileges": true,
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"],
                         "permitted": ["CAP_KILL"]},
    })
}

fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "network"}],
        },
    })
}
