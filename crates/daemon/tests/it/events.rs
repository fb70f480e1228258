//! Events through the daemon.

use gantry_api::containerd::events::ContainerDelete;
use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, UpdateContainerRequest, container,
};
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::containerd::services::content::v1::{DeleteContentRequest, WriteAction};
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::events::v1::{
    ForwardRequest, PublishRequest, SubscribeRequest,
};
use gantry_api::containerd::services::images::v1 as images;
use gantry_api::containerd::services::images::v1::images_client::ImagesClient;
use gantry_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_api::containerd::services::namespaces::v1::{
    CreateNamespaceRequest, DeleteNamespaceRequest, Namespace, UpdateNamespaceRequest,
};
use gantry_api::containerd::services::snapshots::v1 as snapshots;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_api::containerd::types::{Descriptor, Envelope};
use gantry_api::{Payload as _, Shared};
use prost_types::Any;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::harness::{Harness, NAMESPACE, in_ns, ns, refused};

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_to_those_who_ask_for_them() {
    let daemon = Harness::start().await;
    let mut client = EventsClient::new(daemon.channel());
    let filters = vec![
        "topic==\"/containers/delete\",event.id==b".to_owned(),
        "namespace==other,topic~=|^/x/|".to_owned(),
    ];
    let subscribe = Request::new(SubscribeRequest { filters });
    let mut events = client.subscribe(subscribe).await.unwrap().into_inner();

    let mut containers = ContainersClient::new(daemon.channel());
    for id in ["a", "b"] {
        let runtime = container::Runtime { name: "r".to_owned(), options: None };
        let container = Container { id: id.into(), runtime: Some(runtime), ..Default::default() };
        let create = CreateContainerRequest { container: Some(container) };
        containers.create(ns(create)).await.unwrap();
        containers.delete(ns(DeleteContainerRequest { id: id.into() })).await.unwrap();
    }
    let event = Any { type_url: "some.Type".to_owned(), value: vec![1, 2] };
    let publish = |topic: &str| PublishRequest { topic: topic.into(), event: Some(event.clone()) };
    client.publish(ns(publish("/x/y"))).await.unwrap();
    client.publish(in_ns("other", publish("/x/y"))).await.unwrap();

    let first = events.message().await.unwrap().unwrap();
    assert_eq!((first.namespace.as_str(), first.topic.as_str()), (NAMESPACE, "/containers/delete"));
    let deleted: ContainerDelete = first.into_message().event.unwrap().unpack().unwrap().unwrap();
    assert_eq!(deleted.id, "b");
    let second = events.message().await.unwrap().unwrap();
    assert_eq!((second.namespace.as_str(), second.event.clone()), ("other", Some(event)));
    drop(events);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_events_are_refused() {
    let daemon = Harness::start().await;
    let mut client = EventsClient::new(daemon.channel());
    let publish = |topic: &str| PublishRequest { topic: topic.into(), event: None };
    refused(
        client.publish(Request::new(publish("/a/b"))).await,
        Code::FailedPrecondition,
        "namespace is required",
    );
    for topic in ["", "a/b", "/", "/a//b", "/a/b!"] {
        refused(client.publish(ns(publish(topic))).await, Code::InvalidArgument, "");
    }
    let forward = |envelope| Request::new(ForwardRequest { envelope });
    refused(client.forward(forward(None)).await, Code::InvalidArgument, "envelope");
    let bad = Envelope { namespace: "a b".into(), topic: "/a/b".into(), ..Default::default() };
    refused(client.forward(forward(Some(bad))).await, Code::InvalidArgument, "namespace");
    let good = Envelope { namespace: "a".into(), topic: "/a/b".into(), ..Default::default() };
    client.forward(forward(Some(good))).await.unwrap();
    let subscribe = SubscribeRequest { filters: vec!["topic===x".to_owned()] };
    refused(client.subscribe(subscribe).await, Code::Unknown, "");
    daemon.stop().await;
}

/// Topics of one namespace with the types of their events, in order.
async fn topics(
    events: &mut tonic::Streaming<Shared<Envelope>>,
    count: usize,
) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let event = events.message().await.unwrap().expect("the stream goes on");
        assert!(event.timestamp.is_some());
        seen.push((event.topic.clone(), event.into_message().event.unwrap().type_url));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_tells_of_its_life_in_order() {
    let daemon = Harness::start().await;
    let channel = daemon.channel();
    let filters = vec!["namespace==told".to_owned()];
    let subscribe = Request::new(SubscribeRequest { filters });
    let mut client = EventsClient::new(channel.clone());
    let mut events = client.subscribe(subscribe).await.unwrap().into_inner();

    namespaces_live(&channel).await;
    containers_live(&channel).await;
    images_live(&channel).await;
    content_lives(&channel).await;
    snapshots_live(&channel).await;
    let mut ends = namespaces_client(&channel);
    ends.delete(DeleteNamespaceRequest { name: "told".into() }).await.unwrap();

    let want = [
        ("/namespaces/create", "containerd.events.NamespaceCreate"),
        ("/namespaces/update", "containerd.events.NamespaceUpdate"),
        ("/containers/create", "containerd.events.ContainerCreate"),
        ("/containers/update", "containerd.events.ContainerUpdate"),
        ("/containers/delete", "containerd.events.ContainerDelete"),
        ("/images/create", "containerd.services.images.v1.ImageCreate"),
        ("/images/update", "containerd.services.images.v1.ImageUpdate"),
        ("/images/delete", "containerd.services.images.v1.ImageDelete"),
        ("/content/create", "containerd.events.ContentCreate"),
        ("/content/delete", "containerd.events.ContentDelete"),
        ("/snapshot/prepare", "containerd.events.SnapshotPrepare"),
        ("/snapshot/commit", "containerd.events.SnapshotCommit"),
        // The view was not told of when it was made.
        ("/snapshot/remove", "containerd.events.SnapshotRemove"),
        ("/snapshot/remove", "containerd.events.SnapshotRemove"),
        ("/namespaces/delete", "containerd.events.NamespaceDelete"),
    ];
    let seen = topics(&mut events, want.len()).await;
    let seen: Vec<_> = seen.iter().map(|(t, k)| (t.as_str(), k.as_str())).collect();
    assert_eq!(seen, want);
    drop(events);
    daemon.stop().await;
}

fn namespaces_client(channel: &Channel) -> NamespacesClient<Channel> {
    NamespacesClient::new(channel.clone())
}

fn told<T>(message: T) -> Request<T> {
    in_ns("told", message)
}

async fn namespaces_live(channel: &Channel) {
    let namespace = || Some(Namespace { name: "told".into(), ..Default::default() });
    let mut client = namespaces_client(channel);
    client.create(CreateNamespaceRequest { namespace: namespace() }).await.unwrap();
    let update = UpdateNamespaceRequest { namespace: namespace(), update_mask: None };
    client.update(update).await.unwrap();
}

async fn containers_live(channel: &Channel) {
    let runtime = container::Runtime { name: "r".to_owned(), options: None };
    let container = Container { id: "c".into(), runtime: Some(runtime), ..Default::default() };
    let mut client = ContainersClient::new(channel.clone());
    let create = CreateContainerRequest { container: Some(container.clone()) };
    client.create(told(create)).await.unwrap();
    let update = UpdateContainerRequest { container: Some(container), update_mask: None };
    client.update(told(update)).await.unwrap();
    client.delete(told(DeleteContainerRequest { id: "c".into() })).await.unwrap();
}

async fn images_live(channel: &Channel) {
    let target = Descriptor {
        media_type: "m".into(),
        digest: gantry_core::Digest::of(b"x").into(),
        size: 1,
        ..Default::default()
    };
    let image =
        images::Image { name: "i".into(), target: Some(target), ..images::Image::default() };
    let mut client = ImagesClient::new(channel.clone());
    let create = images::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    client.create(told(create)).await.unwrap();
    let update = images::UpdateImageRequest {
        image: Some(image),
        update_mask: None,
        source_date_epoch: None,
    };
    client.update(told(update)).await.unwrap();
    let delete = images::DeleteImageRequest { name: "i".into(), ..Default::default() };
    client.delete(told(delete)).await.unwrap();
}

async fn content_lives(channel: &Channel) {
    let mut client = ContentClient::new(channel.clone());
    let digest = crate::content::put(&mut client, "told", b"told").await;
    // Once more: refused, and not told.
    let mut writing = crate::content::Writing::open(&mut client, "told").await;
    let mut again = crate::content::message(WriteAction::Commit, "again");
    again.expected.clone_from(&digest);
    refused(writing.say(again).await, Code::AlreadyExists, "");
    client.delete(told(DeleteContentRequest { digest })).await.unwrap();
}

async fn snapshots_live(channel: &Channel) {
    let mut client = SnapshotsClient::new(channel.clone());
    let snapshotter = || "native".to_owned();
    let root = || [("containerd.io/gc.root".to_owned(), "test".to_owned())].into();
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: snapshotter(),
        key: "a".into(),
        parent: String::new(),
        labels: root(),
    };
    client.prepare(told(prepare)).await.unwrap();
    let commit = snapshots::CommitSnapshotRequest {
        snapshotter: snapshotter(),
        name: "base".into(),
        key: "a".into(),
        labels: root(),
        parent: String::new(),
    };
    client.commit(told(commit)).await.unwrap();
    let view = snapshots::ViewSnapshotRequest {
        snapshotter: snapshotter(),
        key: "v".into(),
        parent: "base".into(),
        labels: root(),
    };
    client.view(told(view)).await.unwrap();
    for key in ["v", "base"] {
        let remove =
            snapshots::RemoveSnapshotRequest { snapshotter: snapshotter(), key: key.into() };
        client.remove(told(remove)).await.unwrap();
    }
}
/// Payloads so large that the windows of HTTP/2 hold few of them.
const PAYLOAD_LEN: usize = 4096;

/// Events published before they are read.
const BATCH_LEN: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_ends_at_the_limit_and_others_go_on() {
    use gantry_events::SUBSCRIBER_QUEUE_LEN;
    let daemon = Harness::start().await;
    let mut client = EventsClient::new(daemon.channel());
    let subscribe = || Request::new(SubscribeRequest { filters: vec!["topic==\"/x/y\"".into()] });
    let mut silent = client.subscribe(subscribe()).await.unwrap().into_inner();
    // On a connection of its own: what one stream does not read fills the window of all.
    let path = daemon.path().join("state/gantry.sock");
    let channel = crate::harness::connect(path.to_str().unwrap()).await;
    let mut reading = EventsClient::new(channel.clone()).subscribe(subscribe()).await.unwrap();
    let mut publisher = EventsClient::new(channel);
    let sent = (SUBSCRIBER_QUEUE_LEN + (8 << 20) / PAYLOAD_LEN).next_multiple_of(BATCH_LEN);
    let event = Any { type_url: "some.Type".to_owned(), value: vec![7; PAYLOAD_LEN] };
    // Many at a time: what comes alone waits for more to come with it.
    for _ in 0..sent / BATCH_LEN {
        for _ in 0..BATCH_LEN {
            let publish = PublishRequest { topic: "/x/y".into(), event: Some(event.clone()) };
            publisher.publish(ns(publish)).await.unwrap();
        }
        for _ in 0..BATCH_LEN {
            reading.get_mut().message().await.unwrap().unwrap();
        }
    }
    let mut got = 0;
    let end = loop {
        match silent.message().await {
            Ok(Some(_)) => got += 1,
            Ok(None) => panic!("the stream must end in an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    assert!(end.message().contains(&SUBSCRIBER_QUEUE_LEN.to_string()), "{end:?}");
    assert!((SUBSCRIBER_QUEUE_LEN..sent).contains(&got), "{got} of {sent}");
    // Who subscribes anew is served.
    let mut again = client.subscribe(subscribe()).await.unwrap().into_inner();
    let publish = PublishRequest { topic: "/x/y".into(), event: None };
    client.publish(ns(publish)).await.unwrap();
    again.message().await.unwrap().unwrap();
    drop((again, reading));
    daemon.stop().await;
}
