//! A private root, a manager on it, and a small root filesystem.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_core::{Any, Namespace};
use gantry_events::{Event, Exchange, NoFields, Subscription};
use gantry_mount::Mount;
use gantry_runtime::plugin::{Runtime as _, Task};
use gantry_runtime::{Config, CreateOptions, Deadlines, EventService, Io, Manager};
use gantry_ttrpc::{Address, Server};
use prost::{Message as _, Name as _};
use tokio::task::JoinHandle;

use gantry_api::containerd::runc::v1::Options;
use gantry_api::containerd::services::events::ttrpc::v1::events_ttrpc::EventsServer;

/// Whose shim runs the tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shim {
    /// Debian's, of containerd 1.6, by its path.
    Debian,
    /// Ours, by its runtime's name, as one that lies beside the daemon.
    Ours,
}

/// How long anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    pub(crate) exchange: Exchange,
    pub(crate) namespace: Namespace,
    events: JoinHandle<()>,
    shim: Shim,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.events.abort();
    }
}

impl Fixture {
    /// Directories, the event socket, and a manager. Only one manager at a time has the events.
    pub(crate) fn new(shim: Shim) -> (Self, Manager) {
        let dir = tempfile::tempdir().expect("dir");
        let rootfs = dir.path().join("image");
        gantry_testkit::busybox_dir(&rootfs);
        let exchange = Exchange::new(Arc::new(NoFields));
        let manager = Manager::open(config(dir.path()), exchange.clone()).expect("opened");
        let events = serve_events(dir.path(), &manager);
        // Namespaces are part of runc's state path; a private one keeps runs apart.
        let namespace = format!("it-{}", dir.path().file_name().expect("a name").to_string_lossy());
        let namespace = Namespace::new(namespace.replace(".tmp", "")).expect("a name");
        (Self { dir, exchange, namespace, events, shim }, manager)
    }

    /// A daemon after a restart.
    pub(crate) async fn restart(&mut self, manager: Manager) -> Manager {
        self.stop(manager);
        self.start()
    }

    /// The daemon stops; shims live on.
    pub(crate) fn stop(&self, manager: Manager) {
        self.events.abort();
        manager.close();
        let _ = std::fs::remove_file(self.path("events.sock"));
    }

    /// The daemon starts again.
    pub(crate) fn start(&mut self) -> Manager {
        let manager =
            Manager::open(config(self.dir.path()), self.exchange.clone()).expect("opened");
        self.events = serve_events(self.dir.path(), &manager);
        manager
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        let none: [&str; 0] = [];
        self.exchange.subscribe(&none).expect("subscribed")
    }

    /// A task that runs `script` in busybox's shell; its output goes to the file `out`.
    pub(crate) async fn create(
        &self,
        manager: &Manager,
        id: &str,
        script: &str,
    ) -> gantry_errdefs::Result<Arc<dyn Task>> {
        let cgroup = format!("{}-{id}", self.namespace);
        let spec = spec(&cgroup, script).to_string().into_bytes();
        // Debian's shim dies of a file for one stream only.
        let out = format!("file://{}", self.path("out").display());
        let options = CreateOptions {
            runtime: match self.shim {
                Shim::Debian => "/usr/bin/containerd-shim-runc-v2".to_owned(),
                Shim::Ours => "io.containerd.runc.v2".to_owned(),
            },
            spec: Any { type_url: "spec".into(), value: spec },
            rootfs: vec![Mount::new(
                "bind",
                self.path("image").display().to_string(),
                ["rbind", "rw"],
            )],
            io: Io { stdout: out.clone(), stderr: out, ..Io::default() },
            runtime_options: Some(self.runc_options()),
            ..CreateOptions::default()
        };
        manager.create(&self.namespace, id, options).await
    }

    /// runc keeps its state here as well, not where a system's own containerd has it.
    fn runc_options(&self) -> Any {
        let options =
            Options { root: self.path("runc").display().to_string(), ..Options::default() };
        Any { type_url: Options::full_name(), value: options.encode_to_vec() }
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.path("state").join(self.namespace.as_str()).join(id)
    }

    /// Processes of this machine that belong to tasks here: their command line names our
    /// namespace.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(self.namespace.as_str()) {
                found.push(pid);
            }
        }
        found
    }

    /// The one shim among them: what runc leaves for a moment carries the namespace's name too.
    pub(crate) fn shim(&self) -> rustix::process::Pid {
        let is_shim = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = line.split(|b| *b == 0).next().unwrap_or_default();
            String::from_utf8_lossy(program).contains("containerd-shim")
        };
        let found: Vec<_> = self.shims().into_iter().filter(is_shim).collect();
        assert_eq!(found.len(), 1, "one shim: {found:?}");
        rustix::process::Pid::from_raw(found[0]).expect("a pid")
    }

    /// Whether anything is left of the task `id`.
    pub(crate) fn assert_clean(&self, id: &str) {
        assert!(!self.bundle(id).exists(), "bundle");
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let here = self.dir.path().display().to_string();
        assert!(!mounts.contains(&here), "mounts below {here}");
        let before = std::time::Instant::now();
        while !self.shims().is_empty() {
            assert!(before.elapsed() < PATIENCE, "shims {:?}", self.shims());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn serve_events(dir: &Path, manager: &Manager) -> JoinHandle<()> {
    let address: Address =
        format!("unix://{}", dir.join("events.sock").display()).parse().expect("an address");
    let listener = address.listen().expect("listens");
    let listener = tokio::net::UnixListener::from_std(listener).expect("tokio");
    let service = EventsServer::new(Arc::new(EventService::new(manager.clone())));
    let server = Server::builder().service(service).build();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await })
}

fn config(dir: &Path) -> Config {
    Config {
        root: dir.join("root"),
        state: dir.join("state"),
        sandbox_root: dir.join("sandbox-root"),
        sandbox_state: dir.join("sandbox-state"),
        grpc_address: dir.join("grpc.sock").display().to_string(),
        ttrpc_address: dir.join("events.sock").display().to_string(),
        publish_binary: "/bin/true".into(),
        shim_dir: gantry_testkit::built_program("containerd-shim-runc-v2")
            .parent()
            .map(Path::to_owned),
        socket_dir: dir.join("s"),
        version: "0.0.0".into(),
        debug: false,
        env: Vec::new(),
        deadlines: Deadlines { cleanup: Duration::from_secs(20), ..Deadlines::default() },
    }
}

fn spec(cgroup: &str, script: &str) -> serde_json::Value {
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            // Tasks share one root here; each has devices of its own.
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {
            "cgroupsPath": format!("/{cgroup}"),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "mount"}, {"type": "network"},
            ],
        },
    })
}

/// Reads events until one of `topic` came, and returns it.
pub(crate) async fn until(events: &mut Subscription, topic: &str) -> Arc<Event> {
    let search = async {
        loop {
            let event = events.next().await.expect("a stream").expect("not too slow");
            if event.topic == topic {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("the event in time")
}
