//! Starting, stopping, sockets and the in-process channel.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::time::Duration;

use gantry_api::containerd::services::version::v1::version_client::VersionClient;
use gantry_api::grpc::health::v1::HealthCheckRequest;
use gantry_api::grpc::health::v1::health_client::HealthClient;
use gantry_daemon::Daemon;
use tonic::{Code, Request};

use crate::harness::{Harness, config_in, connect, refused};

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_sockets_have_their_modes() {
    let daemon = Harness::start().await;
    let mode = |name: &str| {
        let meta = std::fs::symlink_metadata(daemon.path().join(name)).unwrap();
        (meta.permissions().mode() & 0o7777, meta.file_type().is_socket())
    };
    assert_eq!(mode("root"), (0o700, false));
    assert_eq!(mode("state"), (0o711, false));
    assert_eq!(mode("state/gantry.sock"), (0o660, true));
    assert_eq!(mode("state/gantry.sock.ttrpc"), (0o660, true));
    let socket = daemon.path().join("state/gantry.sock");
    let dir = daemon.path().to_owned();
    // The directory outlives the daemon's value only as long as the harness: look before it goes.
    let keep = tempfile::tempdir().unwrap();
    std::fs::write(keep.path().join("x"), b"").unwrap();
    daemon.stop().await;
    assert!(!socket.exists(), "{}", dir.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_is_one_clients_can_parse() {
    let daemon = Harness::start().await;
    let version =
        VersionClient::new(daemon.channel()).version(Request::new(())).await.unwrap().into_inner();
    assert!(version.version.starts_with("2."), "{}", version.version);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_in_process_without_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let address = config.address().to_owned();
    let running = Daemon::start_embedded(config).await.unwrap();
    assert!(!std::path::Path::new(&address).exists());
    let mut client = VersionClient::new(running.channel());
    assert!(client.version(Request::new(())).await.is_ok());
    running.shutdown().await;
    refused(client.version(Request::new(())).await, Code::Unavailable, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_serves_the_empty_name_only() {
    let daemon = Harness::start().await;
    let mut client = HealthClient::new(daemon.channel());
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    assert_eq!(client.check(ask("")).await.unwrap().into_inner().status, 1);
    refused(client.check(ask("containerd")).await, Code::NotFound, "unknown service");
    let mut watch = client.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    std::fs::create_dir_all(dir.path().join("state")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(config.address()).unwrap());
    let address = config.address().to_owned();
    let running = Daemon::start(config).await.unwrap();
    connect(&address).await;

    let mut other = config_in(&dir.path().join("other"));
    other.set_address(&address);
    let err = Daemon::start(other).await.unwrap_err();
    assert!(err.is_failed_precondition(), "{err}");
    running.shutdown().await;

    let mut blocked = config_in(&dir.path().join("blocked"));
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    blocked.set_address(file.to_str().unwrap());
    blocked.plugins.ttrpc.address = dir.path().join("t").to_string_lossy().into_owned();
    let err = Daemon::start(blocked).await.unwrap_err();
    assert!(err.is_failed_precondition() && err.message().contains("no socket"), "{err}");
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_in_time_with_streams_open() {
    let daemon = Harness::start().await;
    let mut client = HealthClient::new(daemon.channel());
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), daemon.stop()).await.unwrap();
}
