//! What was acknowledged is there after a restart.

use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::containers::v1::{
    Container, CreateContainerRequest, GetContainerRequest, container,
};
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::containerd::services::content::v1::{
    Info, InfoRequest, StatusRequest, UpdateRequest, WriteAction,
};
use gantry_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::services::leases::v1::{CreateRequest, ListRequest};
use gantry_api::containerd::services::namespaces::v1::ListNamespacesRequest;
use gantry_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_api::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, StatSnapshotRequest,
};
use prost_types::Any;
use tonic::Request;

use crate::content::{Writing, message, put};
use crate::harness::{Harness, ns};

#[tokio::test(flavor = "multi_thread")]
async fn records_blobs_and_ingests_outlive_the_daemon() {
    let mut daemon = Harness::start().await;
    let spec = Any { type_url: "x/Spec".to_owned(), value: vec![0, 1, 2, 255] };
    let labels = [("k".to_owned(), "v".to_owned())].into();
    let runtime = container::Runtime { name: "r".to_owned(), options: None };
    let container = Container {
        id: "c".to_owned(),
        labels,
        runtime: Some(runtime),
        spec: Some(spec),
        extensions: [("e".to_owned(), Any::default())].into(),
        ..Default::default()
    };
    let mut containers = ContainersClient::new(daemon.channel());
    let create = CreateContainerRequest { container: Some(container) };
    let made = containers.create(ns(create)).await.unwrap().into_inner().container.unwrap();

    let mut content = ContentClient::new(daemon.channel());
    let digest = put(&mut content, "it", b"kept").await;
    let root = [("containerd.io/gc.root".to_owned(), "x".to_owned())].into();
    let info = Info { digest: digest.clone(), labels: root, ..Default::default() };
    content.update(ns(UpdateRequest { info: Some(info), update_mask: None })).await.unwrap();
    let mut writing = Writing::open(&mut content, "it").await;
    let mut half = message(WriteAction::Write, "half");
    half.data = b"half".to_vec().into();
    writing.say(half).await.unwrap();

    let mut leases = LeasesClient::new(daemon.channel());
    let create = CreateRequest { id: "l".to_owned(), ..Default::default() };
    leases.create(ns(create)).await.unwrap();
    let mut introspection = IntrospectionClient::new(daemon.channel());
    let uuid = introspection.server(Request::new(())).await.unwrap().into_inner().uuid;

    drop(writing);
    daemon.restart().await;

    let mut containers = ContainersClient::new(daemon.channel());
    let back = containers.get(ns(GetContainerRequest { id: "c".to_owned() })).await.unwrap();
    assert_eq!(back.into_inner().container.unwrap(), made, "byte for byte");
    let mut content = ContentClient::new(daemon.channel());
    content.info(ns(InfoRequest { digest })).await.unwrap();
    let status = content.status(ns(StatusRequest { r#ref: "half".to_owned() })).await.unwrap();
    assert_eq!(status.into_inner().status.unwrap().offset, 4);
    let mut leases = LeasesClient::new(daemon.channel());
    let found = leases.list(ns(ListRequest::default())).await.unwrap().into_inner().leases;
    assert_eq!(found.len(), 1);
    let mut namespaces = NamespacesClient::new(daemon.channel());
    let found = namespaces.list(ListNamespacesRequest::default()).await.unwrap().into_inner();
    assert_eq!(found.namespaces.len(), 1);
    let mut introspection = IntrospectionClient::new(daemon.channel());
    let again = introspection.server(Request::new(())).await.unwrap().into_inner().uuid;
    assert_eq!(uuid, again, "buildkit compares it");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_outlive_the_daemon() {
    let mut daemon = Harness::start().await;
    let mut snapshots = SnapshotsClient::new(daemon.channel());
    let snapshotter = || "native".to_owned();
    let labels = [("containerd.io/gc.root".to_owned(), "x".to_owned())].into();
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter(),
        key: "a".to_owned(),
        ..Default::default()
    };
    let mounts = snapshots.prepare(ns(prepare)).await.unwrap().into_inner().mounts;
    std::fs::write(std::path::Path::new(&mounts[0].source).join("file"), b"in it").unwrap();
    let commit = CommitSnapshotRequest {
        snapshotter: snapshotter(),
        name: "base".to_owned(),
        key: "a".to_owned(),
        labels,
        ..Default::default()
    };
    snapshots.commit(ns(commit)).await.unwrap();
    daemon.restart().await;
    let mut snapshots = SnapshotsClient::new(daemon.channel());
    let stat = StatSnapshotRequest { snapshotter: snapshotter(), key: "base".to_owned() };
    let info = snapshots.stat(ns(stat)).await.unwrap().into_inner().info.unwrap();
    assert_eq!(info.kind, 3);
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter(),
        key: "b".to_owned(),
        parent: "base".to_owned(),
        ..Default::default()
    };
    let mounts = snapshots.prepare(ns(prepare)).await.unwrap().into_inner().mounts;
    let file = std::path::Path::new(&mounts[0].source).join("file");
    assert_eq!(std::fs::read(file).unwrap(), b"in it");
    daemon.stop().await;
}
