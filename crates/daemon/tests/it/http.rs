//! The metrics and debug listeners.

use std::path::Path;

use gantry_daemon::Daemon;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::harness::{config_in, connect, ns};

async fn get(socket: &Path, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_debug_answer_where_they_are_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let (metrics, debug) = (dir.path().join("metrics.sock"), dir.path().join("debug.sock"));
    let mut config = config_in(dir.path());
    config.plugins.metrics.address = metrics.to_str().unwrap().to_owned();
    config.plugins.debug.address = debug.to_str().unwrap().to_owned();
    let daemon = Daemon::start(config).await.unwrap();
    let (status, text) = get(&metrics, "/v1/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for name in [
        "containerd_build_info_total{version=",
        "containerd_gc_collections_total{status=\"success\"} ",
        "containerd_gc_gc_seconds_count ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} in\n{text}");
    }
    assert_eq!(get(&metrics, "/debug/vars").await.0, "HTTP/1.1 404 Not Found");
    let (status, vars) = get(&debug, "/debug/vars").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let vars: serde_json::Value = serde_json::from_str(&vars).unwrap();
    assert!(vars["runtime"]["workers"].as_u64().unwrap() > 0);
    daemon.shutdown().await;
    assert!(!metrics.exists() && !debug.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_method_kind_and_code() {
    use gantry_api::containerd::services::containers::v1 as containers;
    use gantry_api::containerd::services::content::v1 as content;

    let dir = tempfile::tempdir().unwrap();
    let metrics = dir.path().join("metrics.sock");
    let mut config = config_in(dir.path());
    config.plugins.metrics.address = metrics.to_str().unwrap().to_owned();
    config.plugins.metrics.grpc_histogram = true;
    let address = config.address().to_owned();
    let daemon = Daemon::start(config).await.unwrap();
    let channel = connect(&address).await;
    let mut records = containers::containers_client::ContainersClient::new(channel.clone());
    records.list(ns(containers::ListContainersRequest::default())).await.unwrap();
    let missing = containers::GetContainerRequest { id: "none".into() };
    records.get(ns(missing)).await.unwrap_err();
    // Two messages to the daemon, two back, on one call.
    let write = |action: content::WriteAction| content::WriteContentRequest {
        action: action.into(),
        r#ref: "r".into(),
        data: "some".into(),
        ..Default::default()
    };
    let messages = [write(content::WriteAction::Write), write(content::WriteAction::Stat)];
    let mut blobs = content::content_client::ContentClient::new(channel);
    let mut answers = blobs.write(ns(tokio_stream::iter(messages))).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}

    let text = get(&metrics, "/v1/metrics").await.1;
    let labels = |kind: &str, service: &str, method: &str| {
        format!(
            "grpc_method=\"{method}\",grpc_service=\"containerd.services.{service}\",grpc_type=\"{kind}\""
        )
    };
    let list = labels("unary", "containers.v1.Containers", "List");
    let get = labels("unary", "containers.v1.Containers", "Get");
    let write = labels("bidi_stream", "content.v1.Content", "Write");
    for line in [
        format!("grpc_server_started_total{{{list}}} 1"),
        format!("grpc_server_msg_received_total{{{list}}} 1"),
        format!("grpc_server_msg_sent_total{{{list}}} 1"),
        format!("grpc_server_handled_total{{grpc_code=\"OK\",{list}}} 1"),
        format!("grpc_server_handling_seconds_count{{{list}}} 1"),
        format!("grpc_server_handled_total{{grpc_code=\"NotFound\",{get}}} 1"),
        format!("grpc_server_msg_sent_total{{{get}}} 0"),
        format!("grpc_server_msg_received_total{{{write}}} 2"),
        format!("grpc_server_msg_sent_total{{{write}}} 2"),
        format!("grpc_server_handled_total{{grpc_code=\"OK\",{write}}} 1"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    daemon.shutdown().await;
}
