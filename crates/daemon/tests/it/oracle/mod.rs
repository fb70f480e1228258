//! Services that need real containers and mounts, call by call: on gantryd and on Debian's
//! containerd, which proves that clients have always seen it so.

mod diff;
mod failpoints;
mod tasks;
mod walk;

use std::path::{Path, PathBuf};

use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_api::containerd::types::Mount;
use gantry_testkit::{Daemon, DaemonKind};
use prost_types::Any;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::harness::{connect, in_ns};

/// A daemon of its own process, and what containers on it run from.
struct World {
    daemon: Daemon,
    channel: Channel,
    /// A directory with busybox in it.
    root: PathBuf,
}

impl World {
    async fn start(kind: DaemonKind) -> Self {
        Self::start_with(kind, "").await
    }

    /// One whose daemon has more in its configuration.
    async fn start_with(kind: DaemonKind, config: &str) -> Self {
        let daemon = match kind {
            DaemonKind::Gantryd => Daemon::gantryd(),
            DaemonKind::Containerd => Daemon::containerd(),
        };
        let daemon = daemon.config(config).start();
        let root = daemon.dir().join("busybox");
        gantry_testkit::busybox_dir(&root);
        let channel = connect(&daemon.address().to_string_lossy()).await;
        Self { daemon, channel, root }
    }

    fn is_gantryd(&self) -> bool {
        self.daemon.kind() == DaemonKind::Gantryd
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    /// A request in the daemon's own namespace: cgroups are named after it.
    fn ask<T>(&self, message: T) -> Request<T> {
        in_ns(self.daemon.namespace(), message)
    }

    /// The record of a container that runs `args`.
    async fn record(&self, id: &str, args: &[&str]) {
        self.record_of(id, "io.containerd.runc.v2", args).await;
    }

    /// The same with another runtime.
    async fn record_of(&self, id: &str, runtime: &str, args: &[&str]) {
        self.record_all(id, runtime, args, json!([])).await;
    }

    /// The same with limits of resources.
    async fn record_with(&self, id: &str, args: &[&str], rlimits: serde_json::Value) {
        self.record_all(id, "io.containerd.runc.v2", args, rlimits).await;
    }

    async fn record_all(&self, id: &str, runtime: &str, args: &[&str], rlimits: serde_json::Value) {
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
                "rlimits": rlimits,
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.daemon.namespace()),
                "namespaces": namespaces,
            },
        });
        let runtime = containers::container::Runtime { name: runtime.to_owned(), options: None };
        let container = containers::Container {
            id: id.to_owned(),
            runtime: Some(runtime),
            spec: Some(json_any("Spec", &spec)),
            ..Default::default()
        };
        let create = containers::CreateContainerRequest { container: Some(container) };
        ContainersClient::new(self.channel.clone()).create(self.ask(create)).await.unwrap();
    }

    async fn forget(&self, id: &str) {
        let delete = containers::DeleteContainerRequest { id: id.to_owned() };
        ContainersClient::new(self.channel.clone()).delete(self.ask(delete)).await.unwrap();
    }
}

/// A message of the runtime spec, as clients pack them.
fn json_any(kind: &str, value: &serde_json::Value) -> Any {
    Any {
        type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{kind}"),
        value: value.to_string().into_bytes(),
    }
}

fn bind(dir: &Path) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: dir.to_str().unwrap().into(),
        target: String::new(),
        options: vec!["rbind".into(), "rw".into()],
    }
}

/// Checks code and text of a failed call; `what` says which.
#[track_caller]
fn fails<T: std::fmt::Debug>(what: &str, result: Result<T, Status>, code: Code, words: &str) {
    let status = match result {
        Err(status) => status,
        Ok(answer) => panic!("{what} must fail, but: {answer:?}"),
    };
    assert_eq!(status.code(), code, "{what}: {status:?}");
    assert!(status.message().contains(words), "{what}: {words:?} in {:?}", status.message());
}
