//! Events through the daemon.

use gantry_api::Payload as _;
use gantry_api::containerd::events::ContainerDelete;
use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, container,
};
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::events::v1::{
    ForwardRequest, PublishRequest, SubscribeRequest,
};
use gantry_api::containerd::types::Envelope;
use prost_types::Any;
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
    let deleted: ContainerDelete = first.event.unwrap().unpack().unwrap().unwrap();
    assert_eq!(deleted.id, "b");
    let second = events.message().await.unwrap().unwrap();
    assert_eq!((second.namespace.as_str(), second.event), ("other", Some(event)));
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

/// Payloads so large that the windows of HTTP/2 hold few of them.
const PAYLOAD_LEN: usize = 4096;

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
    let sent = SUBSCRIBER_QUEUE_LEN + (8 << 20) / PAYLOAD_LEN;
    let event = Any { type_url: "some.Type".to_owned(), value: vec![7; PAYLOAD_LEN] };
    for _ in 0..sent {
        let publish = PublishRequest { topic: "/x/y".into(), event: Some(event.clone()) };
        publisher.publish(ns(publish)).await.unwrap();
        reading.get_mut().message().await.unwrap().unwrap();
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
