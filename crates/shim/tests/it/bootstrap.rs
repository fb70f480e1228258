//! `start` in all its forms, and shims of several containers.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use gantry_api::Payload as _;
use gantry_api::containerd::runc::v1::Options;
use gantry_api::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};
use gantry_api::containerd::task::v3 as api;
use gantry_api::containerd::types::RuntimeInfo;
use prost::Message as _;
use prost_types::Any;

use crate::harness::*;

fn feed(command: Command, input: &[u8]) -> Vec<u8> {
    let mut command = command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(input).expect("written");
    let out = child.wait_with_output().expect("ends");
    assert!(out.status.success());
    out.stdout
}

#[test]
fn root_each_daemon_gets_the_answer_it_understands() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["true"]);
        let old = daemon.start_with(&bundle, |_| {});
        let old = String::from_utf8(old.stdout).expect("text");
        assert!(old.starts_with("unix:///") && !old.contains('\n'), "{old:?}");
        let address = std::fs::read_to_string(bundle.path.join("address")).expect("written");
        assert_eq!(address, old);
        let newer = daemon.start_with(&bundle, |command| {
            command.env("MAX_SHIM_VERSION", "2");
        });
        let newer: serde_json::Value = serde_json::from_slice(&newer.stdout).expect("json");
        assert_eq!(newer["version"], 2);
        assert_eq!(newer["protocol"], "ttrpc");
        assert_eq!(newer["address"], old.as_str(), "the shim that answers is used again");
        daemon.connect(&old, &bundle).await.shutdown(&bundle.id).await;
    });
}

#[test]
fn root_parameters_on_stdin_are_answered_in_kind() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["true"]);
        let params = BootstrapParams {
            instance_id: bundle.id.clone(),
            namespace: "test".into(),
            containerd_version: "2.3.4".into(),
            containerd_grpc_address: daemon.address().display().to_string(),
            containerd_ttrpc_address: daemon.dir.path().join("d.sock.ttrpc").display().to_string(),
            socket_dir: Some(daemon.dir.path().join("elsewhere").display().to_string()),
            ..Default::default()
        };
        let mut command = Command::new(BINARY);
        command.current_dir(&bundle.path).args(["-namespace", "test", "-id", &bundle.id, "start"]);
        let out = feed(command, &params.encode_to_vec());
        let result = BootstrapResult::decode(out.as_slice()).expect("decodes");
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert!(result.address.contains("/elsewhere/"), "{}", result.address);
        let shim = daemon.connect(&result.address, &bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        assert_eq!(shim.wait(&bundle.id, "").await, 0);
        shim.finish(&bundle).await;
        daemon.events.until("/tasks/delete").await;
    });
}

#[test]
fn root_a_daemon_may_hand_over_the_listening_socket() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sh", "-c", "exit 3"]);
        let path = daemon.dir.path().join("direct.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        let mut command = Command::new(BINARY);
        command.current_dir(&bundle.path).args(["-namespace", "test", "-id", &bundle.id]);
        command.env("TTRPC_ADDRESS", daemon.dir.path().join("d.sock.ttrpc"));
        let mut child = command.stdin(Stdio::from(OwnedFd::from(listener))).spawn().expect("runs");
        let address = format!("unix://{}", path.display());
        let shim = daemon.connect(&address, &bundle).await;
        assert_eq!(shim.pid, child.id());
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        assert_eq!(shim.wait(&bundle.id, "").await, 3);
        shim.finish(&bundle).await;
        assert!(child.wait().expect("ends").success());
    });
}

#[test]
fn root_a_pods_containers_share_a_shim() {
    run(async {
        let daemon = Daemon::start();
        let mut bundles = [daemon.bundle(&["sleep", "1000"]), daemon.bundle(&["sleep", "1000"])];
        for bundle in &mut bundles {
            bundle.spec["annotations"] = serde_json::json!({"io.kubernetes.cri.sandbox-id": "pod"});
            bundle.save();
        }
        let [first, second] = &bundles;
        let shim = daemon.shim(first).await;
        let other = daemon.shim(second).await;
        assert_eq!((shim.pid, &shim.address), (other.pid, &other.address));
        for bundle in &bundles {
            shim.create(bundle).await;
            shim.start(&bundle.id, "").await;
        }
        let _ = shim.kill(&first.id, "", 9).await;
        assert_eq!(shim.wait(&first.id, "").await, 137);
        shim.delete(&first.id, "").await.expect("deleted");
        let request = api::ShutdownRequest { id: first.id.clone(), now: false };
        shim.task.shutdown(&context(), &request).await.expect("ignored");
        let state = shim.state(&second.id, "").await.expect("is still served");
        assert_ne!(state.pid, 0);
        shim.finish(second).await;
    });
}

#[test]
fn root_info_tells_the_runtimes_features() {
    let mut command = Command::new(BINARY);
    command.arg("-info");
    let options = Any::pack(&Options { binary_name: "runc".into(), ..Default::default() });
    let info = RuntimeInfo::decode(feed(command, &options.encode_to_vec()).as_slice());
    let info = info.expect("decodes");
    assert_eq!(info.name, "io.containerd.runc.v2");
    let features = info.features.expect("runc tells its features");
    let features: serde_json::Value = serde_json::from_slice(&features.value).expect("json");
    assert!(features["ociVersionMax"].is_string());
}

#[test]
fn without_a_socket_or_an_action_there_is_nothing_to_do() {
    let out = Command::new(BINARY).stdin(Stdio::null()).output().expect("runs");
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("give an action"));
    assert!(out.stdout.is_empty());
}
