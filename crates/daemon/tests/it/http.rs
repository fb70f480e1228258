//! The metrics and debug listeners.

use std::path::Path;

use gantry_daemon::Daemon;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::harness::config_in;

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
