//! Sandboxes through the controller API, with our shim.

use std::path::Path;

use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::containers::v1::{
    Container, CreateContainerRequest, container,
};
use gantry_api::containerd::services::events::v1::SubscribeRequest;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::sandbox::v1 as wire;
use gantry_api::containerd::services::sandbox::v1::controller_client::ControllerClient;
use gantry_api::containerd::services::sandbox::v1::store_client::StoreClient;
use gantry_api::containerd::services::tasks::v1 as tasks;
use gantry_api::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_api::containerd::types::{Mount, Sandbox, sandbox};
use gantry_daemon::Daemon;
use gantry_daemon::config::ProxyPlugin;
use prost_types::Any;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::harness::{Harness, config_in, connect, ns, refused};

const ID: &str = "pod1";
const SHIM: &str = "shim";

fn shim_program() -> String {
    gantry_testkit::built_program("containerd-shim-runc-v2").to_str().unwrap().to_owned()
}

async fn record(channel: Channel) {
    let runtime = sandbox::Runtime { name: shim_program(), options: None };
    let sandbox = Sandbox {
        sandbox_id: ID.to_owned(),
        runtime: Some(runtime),
        sandboxer: SHIM.to_owned(),
        ..Sandbox::default()
    };
    let create = wire::StoreCreateRequest { sandbox: Some(sandbox) };
    StoreClient::new(channel).create(ns(create)).await.unwrap();
}

fn create() -> wire::ControllerCreateRequest {
    wire::ControllerCreateRequest {
        sandbox_id: ID.into(),
        sandboxer: SHIM.into(),
        ..Default::default()
    }
}

fn start() -> wire::ControllerStartRequest {
    wire::ControllerStartRequest { sandbox_id: ID.into(), sandboxer: SHIM.into() }
}

fn status() -> wire::ControllerStatusRequest {
    wire::ControllerStatusRequest { sandbox_id: ID.into(), sandboxer: SHIM.into(), verbose: true }
}

fn shutdown() -> wire::ControllerShutdownRequest {
    wire::ControllerShutdownRequest { sandbox_id: ID.into(), sandboxer: SHIM.into() }
}

/// Starts a container in the sandbox; its bundle's shim is the sandbox's.
async fn run_in_it(channel: Channel, dir: &Path) {
    let rootfs = dir.join("image");
    gantry_testkit::busybox_dir(&rootfs);
    let unique = dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.');
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/bin/busybox", "sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0}
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": format!("/gantry-it/{unique}"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}]
        }
    });
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned();
    let container = Container {
        id: "c1".into(),
        runtime: Some(container::Runtime { name: shim_program(), options: None }),
        spec: Some(Any { type_url, value: spec.to_string().into_bytes() }),
        sandbox: ID.into(),
        ..Default::default()
    };
    let request = CreateContainerRequest { container: Some(container) };
    ContainersClient::new(channel.clone()).create(ns(request)).await.unwrap();
    let mut client = TasksClient::new(channel);
    let mount = Mount {
        r#type: "bind".into(),
        source: rootfs.to_str().unwrap().into(),
        target: String::new(),
        options: vec!["rbind".into(), "rw".into()],
    };
    let request = tasks::CreateTaskRequest {
        container_id: "c1".into(),
        rootfs: vec![mount],
        ..Default::default()
    };
    client.create(ns(request)).await.unwrap();
    let request = tasks::StartRequest { container_id: "c1".into(), exec_id: String::new() };
    client.start(ns(request)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_sandbox_of_the_shim_lives_and_ends() {
    let mut daemon = Harness::start().await;
    record(daemon.channel()).await;
    let filters = vec!["topic~=|^/sandboxes/|".to_owned()];
    let subscribe = Request::new(SubscribeRequest { filters });
    let mut events =
        EventsClient::new(daemon.channel()).subscribe(subscribe).await.unwrap().into_inner();
    let mut k = ControllerClient::new(daemon.channel());
    refused(k.start(ns(start())).await, Code::Unknown, "not found");
    k.create(ns(create())).await.unwrap();
    refused(k.create(ns(create())).await, Code::AlreadyExists, ID);
    let started = k.start(ns(start())).await.unwrap().into_inner();
    assert!(started.pid > 0 && started.created_at.is_some() && started.version >= 3);
    let now = k.status(ns(status())).await.unwrap().into_inner();
    assert_eq!((now.state.as_str(), now.pid), ("SANDBOX_READY", started.pid));
    assert!(now.info.contains_key("version") && now.exited_at.is_none());
    let metrics = wire::ControllerMetricsRequest { sandbox_id: ID.into(), sandboxer: SHIM.into() };
    let metrics = k.metrics(ns(metrics)).await.unwrap().into_inner().metrics;
    assert_eq!(metrics.unwrap().id, ID);
    run_in_it(daemon.channel(), daemon.path()).await;
    let bundle = daemon.path().join("state/io.containerd.runtime.v2.task/it/c1");
    let bootstrap = std::fs::read_to_string(bundle.join("bootstrap.json")).unwrap();
    assert!(bootstrap.contains(&started.address), "{bootstrap}");
    for want in ["/sandboxes/create", "/sandboxes/start"] {
        assert_eq!(events.message().await.unwrap().unwrap().topic, want);
    }

    // It outlives the daemon.
    drop(events);
    daemon.restart().await;
    let mut k = ControllerClient::new(daemon.channel());
    let now = k.status(ns(status())).await.unwrap().into_inner();
    assert_eq!((now.state.as_str(), now.pid), ("SANDBOX_READY", started.pid));
    let mut waiter = ControllerClient::new(daemon.channel());
    let waiting = tokio::spawn(async move {
        let wait = wire::ControllerWaitRequest { sandbox_id: ID.into(), sandboxer: SHIM.into() };
        waiter.wait(ns(wait)).await
    });
    let stop = wire::ControllerStopRequest {
        sandbox_id: ID.into(),
        timeout_secs: 5,
        sandboxer: SHIM.into(),
    };
    k.stop(ns(stop.clone())).await.unwrap();
    let ended = waiting.await.unwrap().unwrap().into_inner();
    assert!(ended.exited_at.is_some());
    let mut client = TasksClient::new(daemon.channel());
    let request = tasks::DeleteTaskRequest { container_id: "c1".into() };
    let deleted = client.delete(ns(request)).await.unwrap().into_inner();
    assert_eq!(deleted.exit_status, 137);
    k.shutdown(ns(shutdown())).await.unwrap();
    let bundles = daemon.path().join("state/io.containerd.sandbox.controller.v1.shim/it");
    assert_eq!(std::fs::read_dir(bundles).unwrap().count(), 0);
    // One that is gone has ended, and is stopped.
    let gone = k.status(ns(status())).await.unwrap().into_inner();
    assert!(gone.exited_at.is_some() && gone.state.is_empty());
    k.stop(ns(stop)).await.unwrap();
    refused(k.shutdown(ns(shutdown())).await, Code::NotFound, ID);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_in_other_processes_get_the_messages() {
    let remote = Harness::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config_in(dir.path());
    for (name, address) in
        [("remote", remote.path().join("state/gantry.sock")), ("away", dir.path().join("none"))]
    {
        let plugin = ProxyPlugin {
            kind: "sandbox".into(),
            address: address.to_str().unwrap().into(),
            ..ProxyPlugin::default()
        };
        config.proxy_plugins.insert(name.into(), plugin);
    }
    let address = config.address().to_owned();
    let daemon = Daemon::start(config).await.unwrap();
    let mut k = ControllerClient::new(connect(&address).await);
    // It is the remote daemon that knows no sandboxer "remote".
    let asked = |sandboxer: &str| {
        let mut status = status();
        status.sandboxer = sandboxer.into();
        ns(status)
    };
    refused(k.status(asked("remote")).await, Code::NotFound, "sandboxer \"remote\"");
    refused(k.status(asked("away")).await, Code::Unavailable, "proxy plugin \"away\"");
    refused(k.status(asked("nobody")).await, Code::NotFound, "sandboxer \"nobody\"");
    refused(k.status(asked("")).await, Code::InvalidArgument, "sandboxer");
    let update = wire::ControllerUpdateRequest {
        sandbox_id: ID.into(),
        sandboxer: SHIM.into(),
        ..Default::default()
    };
    refused(k.update(ns(update)).await, Code::Unknown, "sandbox can not be nil");
    daemon.shutdown().await;
    remote.stop().await;
}
