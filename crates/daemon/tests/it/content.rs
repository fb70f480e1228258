//! The content service: the whole life of an ingest.

use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::containerd::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ReadContentRequest,
    StatusRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::services::leases::v1::{CreateRequest, ListResourcesRequest};
use gantry_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_api::containerd::services::namespaces::v1::{Namespace, UpdateNamespaceRequest};
use gantry_core::Digest;
use gantry_daemon::Daemon;
use gantry_daemon::config::ContentSharing;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::harness::{Harness, config_in, connect, in_ns, leased, ns, refused};

type Client = ContentClient<Channel>;

/// One `Write` call, a message and its answer at a time.
pub(crate) struct Writing {
    send: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Writing {
    pub(crate) async fn open(client: &mut Client, namespace: &str) -> Self {
        let (send, messages) = mpsc::channel(1);
        let request = in_ns(namespace, ReceiverStream::new(messages));
        Self { send, answers: client.write(request).await.unwrap().into_inner() }
    }

    pub(crate) async fn say(
        &mut self,
        message: WriteContentRequest,
    ) -> Result<WriteContentResponse, Status> {
        self.send.send(message).await.unwrap();
        self.answers.message().await.map(|a| a.expect("an answer to each message"))
    }
}

fn stat(reference: &str) -> WriteContentRequest {
    message(WriteAction::Stat, reference)
}

pub(crate) fn message(action: WriteAction, reference: &str) -> WriteContentRequest {
    WriteContentRequest { action: action.into(), r#ref: reference.to_owned(), ..Default::default() }
}

fn data(offset: i64, bytes: &[u8]) -> WriteContentRequest {
    let mut message = message(WriteAction::Write, "");
    message.offset = offset;
    message.data = bytes.to_vec().into();
    message
}

fn commit(offset: i64, total: i64, expected: &str) -> WriteContentRequest {
    let mut message = message(WriteAction::Commit, "");
    message.offset = offset;
    message.total = total;
    message.expected = expected.to_owned();
    message
}

/// Stores `bytes` in one message.
pub(crate) async fn put(client: &mut Client, namespace: &str, bytes: &[u8]) -> String {
    let digest = Digest::of(bytes).to_string();
    let mut writing = Writing::open(client, namespace).await;
    let mut all = message(WriteAction::Commit, &format!("put-{digest}"));
    all.data = bytes.to_vec().into();
    all.expected.clone_from(&digest);
    // Nothing else keeps it, and the collector is at work.
    all.labels = [("containerd.io/gc.root".to_owned(), "test".to_owned())].into();
    let answer = writing.say(all).await.unwrap();
    assert_eq!(answer.digest, digest);
    digest
}

async fn read(client: &mut Client, digest: &str, offset: i64, size: i64) -> (Vec<u8>, Vec<i64>) {
    let request = ReadContentRequest { digest: digest.to_owned(), offset, size };
    let mut answers = client.read(ns(request)).await.unwrap().into_inner();
    let (mut bytes, mut offsets) = (Vec::new(), Vec::new());
    while let Some(answer) = answers.message().await.unwrap() {
        bytes.extend_from_slice(&answer.data);
        offsets.push(answer.offset);
    }
    (bytes, offsets)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_from_first_message_to_blob() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let digest = Digest::of(b"hello world").to_string();
    let mut writing = Writing::open(&mut client, "it").await;

    let answer = writing.say(stat("r1")).await.unwrap();
    assert_eq!((answer.action, answer.offset, answer.total), (0, 0, 0));
    assert!(answer.started_at.is_some() && answer.updated_at.is_some());
    let answer = writing.say(data(0, b"hello ")).await.unwrap();
    assert_eq!((answer.action, answer.offset), (1, 6));
    assert_eq!(answer.digest, Digest::of(b"hello ").to_string());

    let status = client.status(ns(StatusRequest { r#ref: "r1".into() })).await.unwrap();
    assert_eq!(status.into_inner().status.unwrap().offset, 6);

    let answer = writing.say(data(6, b"world")).await.unwrap();
    assert_eq!(answer.offset, 11);
    let mut last = commit(11, 11, &digest);
    // Nothing else keeps it, and the collector is at work.
    let root = ("containerd.io/gc.root".to_owned(), "test".to_owned());
    last.labels = [("a".to_owned(), "1".to_owned()), root].into();
    let answer = writing.say(last).await.unwrap();
    assert_eq!((answer.action, answer.offset, answer.digest.as_str()), (2, 11, digest.as_str()));

    let info = client.info(ns(InfoRequest { digest: digest.clone() })).await.unwrap().into_inner();
    let info = info.info.unwrap();
    assert_eq!((info.size, info.labels["a"].as_str()), (11, "1"));
    refused(client.status(ns(StatusRequest { r#ref: "r1".into() })).await, Code::NotFound, "r1");
    assert_eq!(read(&mut client, &digest, 0, 0).await.0, b"hello world");
    assert_eq!(read(&mut client, &digest, 6, 2).await, (b"wo".to_vec(), vec![0]));
    let past = ReadContentRequest { digest: digest.clone(), offset: 12, size: 0 };
    refused(client.read(ns(past)).await, Code::OutOfRange, "read past object length");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_writer_a_reference_and_the_bytes_stay() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let mut first = Writing::open(&mut client, "it").await;
    first.say(stat("r")).await.unwrap();
    first.say(data(0, b"abc")).await.unwrap();

    let mut second = Writing::open(&mut client, "it").await;
    refused(second.say(stat("r")).await, Code::Unavailable, "locked");
    drop(first);
    let mut third = wait_for(&mut client, "r").await;
    let answer = third.say(stat("")).await.unwrap();
    assert_eq!(answer.offset, 3, "the bytes of the broken call are there");

    // A gap ends the call and keeps the bytes.
    refused(third.say(data(7, b"x")).await, Code::OutOfRange, "must occur at current offset 3");
    let mut fourth = wait_for(&mut client, "r").await;
    // Offset 0 starts over.
    let answer = fourth.say(data(0, b"xy")).await.unwrap();
    assert_eq!((answer.offset, answer.digest), (2, Digest::of(b"xy").to_string()));
    drop(fourth);

    drop(wait_for(&mut client, "r").await);
    for attempt in 0.. {
        match client.abort(ns(AbortRequest { r#ref: "r".into() })).await {
            Ok(_) => break,
            Err(e) => assert!(attempt < 100, "{e}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    refused(client.abort(ns(AbortRequest { r#ref: "r".into() })).await, Code::NotFound, "r");
    daemon.stop().await;
}

/// Opens a reference that another call is about to let go.
async fn wait_for(client: &mut Client, reference: &str) -> Writing {
    for _ in 0..100 {
        let mut writing = Writing::open(client, "it").await;
        match writing.say(stat(reference)).await {
            Ok(_) => return writing,
            Err(e) => assert_eq!(e.code(), Code::Unavailable, "{e}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("reference {reference} stays locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_check_size_and_digest() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let other = Digest::of(b"other").to_string();
    for (total, expected) in [(4, ""), (0, other.as_str())] {
        let mut writing = wait_for(&mut client, "r").await;
        writing.say(data(0, b"abc")).await.unwrap();
        let refusal = writing.say(commit(3, total, expected)).await;
        refused(refusal, Code::FailedPrecondition, "");
    }
    // Still there, and good for a right commit.
    let mut writing = wait_for(&mut client, "r").await;
    let answer = writing.say(commit(3, 3, &Digest::of(b"abc").to_string())).await.unwrap();
    assert_eq!(answer.digest, Digest::of(b"abc").to_string());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_is_not_written_again() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let digest = put(&mut client, "it", b"blob").await;
    let mut leases = LeasesClient::new(daemon.channel());
    let create = CreateRequest { id: "l".to_owned(), ..Default::default() };
    leases.create(ns(create)).await.unwrap();

    let (send, messages) = mpsc::channel(1);
    let mut first = stat("again");
    first.expected.clone_from(&digest);
    send.send(first).await.unwrap();
    let request = leased(ns(ReceiverStream::new(messages)), "l");
    let mut answers = client.write(request).await.unwrap().into_inner();
    refused(answers.message().await, Code::AlreadyExists, "");
    let held = leases.list_resources(ns(ListResourcesRequest { id: "l".into() })).await.unwrap();
    let held = held.into_inner().resources;
    assert_eq!(held.len(), 1, "the lease holds the blob: {held:?}");
    assert_eq!((held[0].r#type.as_str(), held[0].id.as_str()), ("content", digest.as_str()));

    // Told on a later message: the ingest goes with it.
    let mut writing = Writing::open(&mut client, "it").await;
    writing.say(stat("later")).await.unwrap();
    let mut told = stat("");
    told.expected.clone_from(&digest);
    refused(writing.say(told).await, Code::AlreadyExists, "");
    refused(
        client.status(ns(StatusRequest { r#ref: "later".into() })).await,
        Code::NotFound,
        "later",
    );

    let mut writing = Writing::open(&mut client, "it").await;
    writing.say(stat("twice")).await.unwrap();
    writing.say(data(0, b"blob")).await.unwrap();
    refused(writing.say(commit(4, 4, "")).await, Code::AlreadyExists, "");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_namespace_gets_a_known_digest_for_free() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let digest = put(&mut client, "it", b"shared").await;
    let info = InfoRequest { digest: digest.clone() };
    refused(client.info(in_ns("b", info.clone())).await, Code::NotFound, &digest);

    // One of the two is wrong: the bytes tell.
    let mut writing = Writing::open(&mut client, "b").await;
    let mut first = stat("other size");
    first.expected.clone_from(&digest);
    first.total = 7;
    assert_eq!(writing.say(first.clone()).await.unwrap().offset, 0);
    drop(writing);

    let mut writing = Writing::open(&mut client, "b").await;
    first.r#ref = "r".to_owned();
    first.total = 6;
    let answer = writing.say(first).await.unwrap();
    assert_eq!(answer.offset, 6, "all of it is there");
    writing.say(commit(6, 6, &digest)).await.unwrap();
    client.info(in_ns("b", info)).await.unwrap();
    daemon.stop().await;
}

/// Under the policy `isolated` a digest is no key: the bytes must be shown, unless a namespace that
/// shares has them.
#[tokio::test(flavor = "multi_thread")]
async fn isolated_namespaces_show_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config_in(dir.path());
    config.plugins.metadata.content_sharing_policy = ContentSharing::Isolated;
    let address = config.address().to_owned();
    let daemon = Daemon::start(config).await.unwrap();
    let channel = connect(&address).await;
    let mut client = ContentClient::new(channel.clone());
    let digest = put(&mut client, "a", b"secret").await;
    let open = async |client: &mut Client, namespace: &str| {
        let mut writing = Writing::open(client, namespace).await;
        let mut first = stat("r");
        first.expected.clone_from(&digest);
        first.total = 6;
        let offset = writing.say(first).await.unwrap().offset;
        (writing, offset)
    };
    let (mut writing, offset) = open(&mut client, "b").await;
    assert_eq!(offset, 0, "nothing is given away");
    refused(writing.say(commit(0, 6, &digest)).await, Code::FailedPrecondition, "");
    drop(writing);
    let share = Namespace {
        name: "a".into(),
        labels: [("containerd.io/namespace.shareable".to_owned(), "true".to_owned())].into(),
    };
    let paths = vec!["labels.containerd.io/namespace.shareable".to_owned()];
    let update =
        UpdateNamespaceRequest { namespace: Some(share), update_mask: Some(FieldMask { paths }) };
    NamespacesClient::new(channel).update(update).await.unwrap();
    let (mut writing, offset) = open(&mut client, "c").await;
    assert_eq!(offset, 6, "all of it is there");
    writing.say(commit(6, 6, &digest)).await.unwrap();
    daemon.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_and_long_lists_come_in_pieces() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let bytes: Vec<u8> = (0..(2 << 20) + 5).map(|i: u32| (i % 251) as u8).collect();
    let digest = put(&mut client, "it", &bytes).await;
    let (back, offsets) = read(&mut client, &digest, 1, 0).await;
    assert!(back == bytes[1..]);
    assert_eq!(offsets, [0, 1 << 20, 2 << 20], "counted from the start of the read");

    for i in 0..120_u32 {
        put(&mut client, "it", &i.to_le_bytes()).await;
    }
    let mut pages = client.list(ns(ListContentRequest::default())).await.unwrap().into_inner();
    let mut sizes = Vec::new();
    while let Some(page) = pages.message().await.unwrap() {
        sizes.push(page.info.len());
    }
    assert_eq!(sizes, [100, 21]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_change_by_mask_only() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let digest = put(&mut client, "it", b"labelled").await;
    let update = |labels: &[(&str, &str)], paths: &[&str]| {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let info = Info { digest: digest.clone(), labels, ..Default::default() };
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        ns(UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) })
    };
    client.update(update(&[("a", "1"), ("b", "2")], &["labels.a"])).await.unwrap();
    let info = client.update(update(&[("c.d", "3")], &["labels.c.d"])).await.unwrap().into_inner();
    let labels = info.info.unwrap().labels;
    assert_eq!(labels.len(), 3, "with the root's: {labels:?}");
    refused(client.update(update(&[], &["size"])).await, Code::InvalidArgument, "size");
    let long = "x".repeat(4096);
    refused(client.update(update(&[("k", &long)], &["labels.k"])).await, Code::InvalidArgument, "");
    let info = client.update(update(&[("a", "")], &["labels.a"])).await.unwrap().into_inner();
    assert_eq!(info.info.unwrap().labels.len(), 2);
    client.delete(ns(DeleteContentRequest { digest: digest.clone() })).await.unwrap();
    refused(
        client.delete(ns(DeleteContentRequest { digest: digest.clone() })).await,
        Code::NotFound,
        &digest,
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_first_messages_are_refused() {
    let daemon = Harness::start().await;
    let mut client = ContentClient::new(daemon.channel());
    let mut bad_digest = stat("r");
    bad_digest.expected = "sha256:zz".to_owned();
    let mut bad_action = stat("r");
    bad_action.action = 9;
    for (message, words) in
        [(stat(""), "must have a reference"), (bad_digest, "sha256:zz"), (bad_action, "action 9")]
    {
        let mut writing = Writing::open(&mut client, "it").await;
        refused(writing.say(message).await, Code::InvalidArgument, words);
    }
    daemon.stop().await;
}
