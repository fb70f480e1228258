//! Named streams.

use std::time::Duration;

use bytes::Bytes;
use gantry_api::containerd::services::images::v1::images_client::ImagesClient;
use gantry_api::containerd::services::images::v1::{CreateImageRequest, DeleteImageRequest, Image};
use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::services::streaming::v1::StreamInit;
use gantry_api::containerd::services::streaming::v1::streaming_client::StreamingClient;
use gantry_api::containerd::types::Descriptor;
use gantry_api::{BytesAny, Payload as _};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::{Harness, in_ns, leased, ns, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_acknowledged_and_its_name_is_taken() {
    let daemon = Harness::start().await;
    let mut client = StreamingClient::new(daemon.channel());
    let open = |id: &str| {
        let (send, messages) = tokio::sync::mpsc::channel(4);
        send.try_send(BytesAny::pack(&StreamInit { id: id.to_owned() })).unwrap();
        (send, ns(ReceiverStream::new(messages)))
    };
    let (first, request) = open("a");
    let mut answers = client.stream(request).await.unwrap().into_inner();
    let accepted = answers.message().await.unwrap().unwrap();
    assert_eq!(accepted.type_url, "google.protobuf.Empty");

    let (_second, request) = open("a");
    refused(client.stream(request).await, Code::Unknown, "already exists");

    drop((first, answers));
    // The name is free once the daemon has seen the end.
    for attempt in 0.. {
        let (_third, request) = open("a");
        match client.stream(request).await {
            Ok(_) => break,
            Err(e) => assert!(attempt < 100, "{e}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_message_must_name_the_stream() {
    let daemon = Harness::start().await;
    let mut client = StreamingClient::new(daemon.channel());
    let other = BytesAny::new("x.Y".to_owned(), Bytes::new());
    let request = ns(tokio_stream::iter([other]));
    refused(client.stream(request).await, Code::InvalidArgument, "x.Y");
    let none = ns(tokio_stream::iter(Vec::<BytesAny>::new()));
    refused(client.stream(none).await, Code::InvalidArgument, "before it was named");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_lease_unless_something_refers_to_it() {
    let daemon = Harness::start().await;
    let mut client = StreamingClient::new(daemon.channel());
    let mut l = LeasesClient::new(daemon.channel());
    let create = leases::CreateRequest { id: "l".into(), ..Default::default() };
    l.create(ns(create)).await.unwrap();
    let mut images = ImagesClient::new(daemon.channel());
    let target = Descriptor {
        media_type: "m".into(),
        digest: format!("sha256:{}", "0".repeat(64)),
        size: 1,
        ..Default::default()
    };
    let label = ("containerd.io/gc.ref.stream".to_owned(), "kept".to_owned());
    let image = Image {
        name: "img".into(),
        labels: [label].into(),
        target: Some(target),
        ..Default::default()
    };
    let create = CreateImageRequest { image: Some(image), ..Default::default() };
    images.create(ns(create)).await.unwrap();

    let mut open = Vec::new();
    for name in ["free", "leased", "kept"] {
        let (send, messages) = tokio::sync::mpsc::channel(4);
        send.try_send(BytesAny::pack(&StreamInit { id: name.to_owned() })).unwrap();
        let mut request = ns(ReceiverStream::new(messages));
        if name != "free" {
            request = leased(request, "l");
        }
        let mut answers = client.stream(request).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        open.push((send, answers));
    }
    let delete = leases::DeleteRequest { id: "l".into(), sync: true };
    l.delete(ns(delete)).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(60), open[1].1.message());
    assert!(end.await.expect("it ends").unwrap().is_none());
    // The names of the others are still taken.
    for name in ["free", "kept"] {
        let (send, messages) = tokio::sync::mpsc::channel(4);
        send.try_send(BytesAny::pack(&StreamInit { id: name.to_owned() })).unwrap();
        let request = ns(ReceiverStream::new(messages));
        refused(client.stream(request).await, Code::Unknown, "already exists");
    }
    let delete = DeleteImageRequest { name: "img".into(), sync: true, ..Default::default() };
    images.delete(ns(delete)).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(60), open[2].1.message());
    assert!(end.await.expect("it ends").unwrap().is_none());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_needs_a_namespace_and_the_lease_it_names() {
    let daemon = Harness::start().await;
    let mut client = StreamingClient::new(daemon.channel());
    let init = || tokio_stream::iter([BytesAny::pack(&StreamInit { id: "s".to_owned() })]);
    let none = client.stream(tonic::Request::new(init())).await;
    refused(none, Code::FailedPrecondition, "namespace is required");
    let gone = client.stream(leased(ns(init()), "gone")).await;
    refused(gone, Code::NotFound, "lease does not exist");
    // Another namespace has names of its own.
    let mut held = Vec::new();
    for namespace in ["a", "b"] {
        let (send, messages) = tokio::sync::mpsc::channel(4);
        send.try_send(BytesAny::pack(&StreamInit { id: "s".to_owned() })).unwrap();
        let answers = client.stream(in_ns(namespace, ReceiverStream::new(messages))).await;
        held.push((send, answers.unwrap()));
    }
    daemon.stop().await;
}
