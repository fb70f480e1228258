//! Named streams.

use gantry_api::Payload as _;
use gantry_api::containerd::services::streaming::v1::StreamInit;
use gantry_api::containerd::services::streaming::v1::streaming_client::StreamingClient;
use prost_types::Any;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::{Harness, ns, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_acknowledged_and_its_name_is_taken() {
    let daemon = Harness::start().await;
    let mut client = StreamingClient::new(daemon.channel());
    let open = |id: &str| {
        let (send, messages) = tokio::sync::mpsc::channel(4);
        send.try_send(Any::pack(&StreamInit { id: id.to_owned() })).unwrap();
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
    let other = Any { type_url: "x.Y".to_owned(), value: Vec::new() };
    let request = ns(tokio_stream::iter([other]));
    refused(client.stream(request).await, Code::InvalidArgument, "x.Y");
    let none = ns(tokio_stream::iter(Vec::<Any>::new()));
    refused(client.stream(none).await, Code::InvalidArgument, "before it was named");
    daemon.stop().await;
}
