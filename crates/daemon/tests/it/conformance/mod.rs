//! The conformance suites through the gRPC services: on gantryd's socket, and those of metadata and
//! leases on Debian's containerd as well, which proves that they expect what clients have always
//! seen.

mod content;
mod records;
mod snapshots;

use gantry_core::{Any, Context, Labels};
use gantry_errdefs::{Error, Result};
use gantry_metadata::testsuite::{self, Release};
use gantry_snapshots::testsuite::Counts;
use gantry_testkit::Daemon;
use prost_types::FieldMask;
use std::time::SystemTime;
use tonic::Request;
use tonic::transport::Channel;

use crate::harness::{Harness, connect, in_ns, leased};
use records::Client;

#[tokio::test(flavor = "multi_thread")]
async fn metadata_through_grpc() {
    let daemon = Harness::start().await;
    testsuite::metadata(&Client(daemon.channel()), Release::Current).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_through_grpc() {
    let daemon = Harness::start().await;
    testsuite::leases(&Client(daemon.channel()), Release::Current).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_metadata_on_containerd() {
    let daemon = Daemon::containerd().start();
    let channel = connect(&daemon.address().to_string_lossy()).await;
    testsuite::metadata(&Client(channel), Release::V16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_leases_on_containerd() {
    let daemon = Daemon::containerd().start();
    let channel = connect(&daemon.address().to_string_lossy()).await;
    testsuite::leases(&Client(channel), Release::V16).await;
}

/// What only the newer release does is proved by the newer release.
#[tokio::test(flavor = "multi_thread")]
async fn root_records_on_containerd2() {
    let daemon = Daemon::containerd2().start();
    let channel = connect(&daemon.address().to_string_lossy()).await;
    testsuite::metadata(&Client(channel.clone()), Release::V2).await;
    testsuite::leases(&Client(channel), Release::V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_through_grpc() {
    let daemon = Harness::start().await;
    let store = content::Remote::new(daemon.channel()).await;
    gantry_content::testsuite::run(&store).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_through_grpc() {
    let daemon = Harness::start().await;
    for name in ["overlayfs", "native"] {
        let remote = snapshots::Remote::new(daemon.channel(), name).await;
        gantry_snapshots::testsuite::records(&remote).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_snapshot_trees_through_grpc() {
    let daemon = Harness::start().await;
    let target = tempfile::tempdir().unwrap();
    for (name, counts) in [("overlayfs", Counts::Files), ("native", Counts::FilesOfAll)] {
        let remote = snapshots::Remote::new(daemon.channel(), name).await;
        gantry_snapshots::testsuite::trees(&remote, target.path(), counts).await;
    }
    daemon.stop().await;
}

/// A request in the context's namespace and under its lease.
fn with<T>(ctx: &Context, message: T) -> Request<T> {
    let request = in_ns(ctx.namespace.as_str(), message);
    match &ctx.lease {
        Some(lease) => leased(request, lease),
        None => request,
    }
}

fn mask(paths: &[String]) -> Option<FieldMask> {
    (!paths.is_empty()).then(|| FieldMask { paths: paths.to_vec() })
}

fn map(labels: Labels) -> std::collections::HashMap<String, String> {
    labels.into_iter().collect()
}

fn labels(map: std::collections::HashMap<String, String>) -> Labels {
    map.into_iter().collect()
}

fn time(time: Option<prost_types::Timestamp>) -> SystemTime {
    time.and_then(|t| t.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn any(any: prost_types::Any) -> Any {
    Any { type_url: any.type_url, value: any.value }
}

fn to_any(any: Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url, value: any.value }
}

fn field<T>(field: Option<T>) -> Result<T> {
    field.ok_or_else(|| Error::internal("the answer lacks its one field"))
}

/// A lease that keeps what a suite makes from being collected while it looks.
async fn lease(channel: &Channel, namespace: &str) -> Context {
    use gantry_metadata::testsuite::Subject as _;
    let ctx = Context::new(gantry_core::Namespace::new(namespace).unwrap());
    Client(channel.clone()).create_lease(&ctx, "suite", Labels::new()).await.unwrap();
    ctx.with_lease("suite")
}
