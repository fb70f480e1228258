//! What the daemon says of itself.

use std::os::unix::fs::MetadataExt as _;

use gantry_api::Payload as _;
use gantry_api::containerd::services::introspection::v1 as wire;
use gantry_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use gantry_api::containerd::types::{RuntimeInfo, RuntimeRequest};
use gantry_daemon::Daemon;
use tonic::{Code, Request};

use crate::harness::{Harness, config_in, connect, ns, refused};

/// What containerd 2.3 lists on Linux, as `type without prefix: ids`, but for what CRI needs.
const PLUGINS: &str = "\
content.v1: content
snapshotter.v1: overlayfs native erofs blockfile zfs btrfs devmapper
differ.v1: walking erofs
mount-handler.v1: erofs
mount-manager.v1: bolt
metadata.v1: bolt
gc.v1: scheduler
event.v1: exchange
lease.v1: manager
streaming.v1: manager
warning.v1: deprecations
runtime.v2: task
shim.v1: manager
service.v1: containers-service content-service diff-service images-service introspection-service
service.v1: namespaces-service snapshots-service tasks-service
grpc.v1: containers content diff events images introspection leases mounts namespaces
grpc.v1: sandbox-controllers sandboxes snapshots streaming tasks transfer version healthcheck
cri.v1: images runtime
podsandbox.controller.v1: podsandbox
sandbox.controller.v1: shim
sandbox.store.v1: local
nri.v1: nri
transfer.v1: local
monitor.task.v1: cgroups
monitor.container.v1: restart
internal.v1: opt tracing
tracing.processor.v1: otlp
ttrpc.v1: otelttrpc
server.v1: grpc grpc-tcp ttrpc metrics debug
metrics.v1: grpc-prometheus grpc-otel
http.v1: pprof";

#[tokio::test(flavor = "multi_thread")]
async fn every_part_that_clients_may_look_for_is_listed() {
    let daemon = Harness::start().await;
    let mut client = IntrospectionClient::new(daemon.channel());
    let all = client.plugins(ns(wire::PluginsRequest::default())).await.unwrap().into_inner();
    for line in PLUGINS.lines() {
        let (kind, ids) = line.split_once(": ").unwrap();
        let kind = format!("io.containerd.{kind}");
        for id in ids.split(' ') {
            let found = all.plugins.iter().filter(|p| p.r#type == kind && p.id == id);
            let found: Vec<_> = found.collect();
            assert_eq!(found.len(), 1, "{kind} {id}");
            // Whatever does not work says so as clients expect it.
            if let Some(why) = &found[0].init_err {
                assert!(why.code != 0 && why.message.contains("skip plugin"), "{id}: {why:?}");
            }
        }
    }
    let find = |kind: &str, id: &str| {
        let kind = format!("io.containerd.{kind}");
        all.plugins.iter().find(|p| p.r#type == kind && p.id == id).unwrap()
    };
    let restart = find("monitor.container.v1", "restart");
    assert_eq!(restart.capabilities, ["no", "always", "on-failure", "unless-stopped"]);
    let overlayfs = find("snapshotter.v1", "overlayfs");
    for capability in ["remap-ids", "only-remap-ids", "rebase"] {
        assert!(overlayfs.capabilities.iter().any(|c| c == capability), "{overlayfs:?}");
    }
    let thresholds = &find("gc.v1", "scheduler").exports;
    for (name, value) in [
        ("PauseThreshold", "0.02"),
        ("DeletionThreshold", "0"),
        ("MutationThreshold", "100"),
        ("ScheduleDelay", "0s"),
        ("StartupDelay", "100ms"),
    ] {
        assert_eq!(thresholds.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(find("server.v1", "metrics").init_err.is_some(), "nobody asked for it");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_keeps_its_id() {
    let mut daemon = Harness::start().await;
    let mut client = IntrospectionClient::new(daemon.channel());
    // No namespace is needed.
    let first = client.server(Request::new(())).await.unwrap().into_inner();
    assert_eq!(first.pid, u64::from(std::process::id()));
    assert_eq!(first.pidns, std::fs::metadata("/proc/self/ns/pid").unwrap().ino());
    assert_eq!(first.deprecations, []);
    let file = daemon.path().join("root/io.containerd.grpc.v1.introspection/uuid");
    assert_eq!(std::fs::read_to_string(file).unwrap().trim(), first.uuid);
    daemon.restart().await;
    let mut client = IntrospectionClient::new(daemon.channel());
    let second = client.server(Request::new(())).await.unwrap().into_inner();
    assert_eq!(second.uuid, first.uuid);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_is_asked_for_its_features() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let address = config.address().to_owned();
    let daemon = Daemon::start(config).await.unwrap();
    let mut client = IntrospectionClient::new(connect(&address).await);
    let shim = gantry_testkit::built_program("containerd-shim-runc-v2");
    let ask = |path: &str| wire::PluginInfoRequest {
        r#type: "io.containerd.runtime.v2".into(),
        id: "task".into(),
        options: Some(prost_types::Any::pack(&RuntimeRequest {
            runtime_path: path.into(),
            ..Default::default()
        })),
    };
    let told = client.plugin_info(ns(ask(shim.to_str().unwrap()))).await.unwrap().into_inner();
    assert_eq!(told.plugin.unwrap().id, "task");
    let info: RuntimeInfo = told.extra.unwrap().unpack().unwrap().expect("about a runtime");
    assert!(info.features.is_some() && !info.name.is_empty(), "{info:?}");
    let absent = client.plugin_info(ns(ask("/no/such/shim"))).await;
    refused(absent, Code::Unknown, "stat /no/such/shim: no such file or directory");
    daemon.shutdown().await;
}
