//! Transfers: what goes over named streams and between registries and the store.

use gantry_api::containerd::services::images::v1::GetImageRequest;
use gantry_api::containerd::services::images::v1::images_client::ImagesClient;
use gantry_api::containerd::services::snapshots::v1::StatSnapshotRequest;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_api::containerd::services::streaming::v1::StreamInit;
use gantry_api::containerd::services::streaming::v1::streaming_client::StreamingClient;
use gantry_api::containerd::services::transfer::v1::transfer_client::TransferClient;
use gantry_api::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use gantry_api::containerd::types::transfer::{
    Data, ImageExportStream, ImageImportStream, ImageStore, OciRegistry, Progress, ReadStream,
    RegistryResolver, UnpackConfiguration, WindowUpdate, WriteStream,
};
use gantry_api::gantry::types::transfer::v1::Snapshot;
use gantry_api::{BytesAny, Payload as _};
use gantry_testkit::{Image, Layer, Registry};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::harness::{Harness, ns, refused};

/// A client's end of a named stream.
struct Named {
    send: mpsc::Sender<BytesAny>,
    answers: Streaming<BytesAny>,
}

async fn open(channel: Channel, id: &str) -> Named {
    let (send, messages) = mpsc::channel(4);
    send.try_send(BytesAny::pack(&StreamInit { id: id.to_owned() })).unwrap();
    let request = ns(ReceiverStream::new(messages));
    let mut answers = StreamingClient::new(channel).stream(request).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    Named { send, answers }
}

/// Sends bytes as the daemon grants them, then closes.
async fn feed(mut stream: Named, bytes: Vec<u8>) {
    let mut rest = bytes.as_slice();
    let mut window = 0_usize;
    while !rest.is_empty() {
        while window == 0 {
            let Ok(Some(message)) = stream.answers.message().await else { return };
            let update: WindowUpdate = message.unpack().unwrap().unwrap();
            window += usize::try_from(update.update).unwrap();
        }
        let len = rest.len().min(window).min(32 << 10);
        let data = Data { data: rest[..len].to_vec().into() };
        if stream.send.send(BytesAny::pack(&data)).await.is_err() {
            return;
        }
        window -= len;
        rest = &rest[len..];
    }
    drop(stream.send);
    while let Ok(Some(_)) = stream.answers.message().await {}
}

/// Takes bytes in small grants until the daemon closes.
async fn collect(mut stream: Named) -> Vec<u8> {
    let mut bytes = Vec::new();
    let grant = BytesAny::pack(&WindowUpdate { update: 10_000 });
    stream.send.send(grant.clone()).await.unwrap();
    let mut left = 10_000;
    while let Ok(Some(message)) = stream.answers.message().await {
        let data: Data = message.unpack().unwrap().unwrap();
        assert!(data.data.len() <= left, "more than was granted");
        left -= data.data.len();
        bytes.extend_from_slice(&data.data);
        if left == 0 {
            let _ = stream.send.send(grant.clone()).await;
            left = 10_000;
        }
    }
    bytes
}

fn request(from: Any, to: Any) -> TransferRequest {
    TransferRequest { source: Some(from), destination: Some(to), options: None }
}

fn store(name: &str) -> ImageStore {
    ImageStore { name: name.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_an_archive_goes_in_and_comes_out_over_streams() {
    let daemon = Harness::start().await;
    let mut client = TransferClient::new(daemon.channel());
    let image = Image::busybox();
    let file = daemon.path().join("image.tar");
    image.write_oci_tar(&file, "docker.io/library/bb:v1");
    let archive = std::fs::read(file).unwrap();

    let stream = open(daemon.channel(), "in").await;
    let feeding = tokio::spawn(feed(stream, archive));
    let import = ImageImportStream { stream: "in".into(), ..Default::default() };
    let unpack = UnpackConfiguration { platform: None, snapshotter: "overlayfs".into() };
    let into = ImageStore { unpacks: vec![unpack], ..store("docker.io/library/bb:v1") };
    client.transfer(ns(request(Any::pack(&import), Any::pack(&into)))).await.unwrap();
    feeding.await.unwrap();

    let mut images = ImagesClient::new(daemon.channel());
    let get = |name: &str| ns(GetImageRequest { name: name.to_owned() });
    images.get(get("docker.io/library/bb:v1")).await.unwrap();
    let mut snapshots = SnapshotsClient::new(daemon.channel());
    let key = image.diff_ids()[0].to_string();
    let stat = StatSnapshotRequest { snapshotter: "overlayfs".into(), key };
    snapshots.stat(ns(stat)).await.expect("it is unpacked");

    let tag = request(Any::pack(&store("docker.io/library/bb:v1")), Any::pack(&store("other:v2")));
    client.transfer(ns(tag)).await.unwrap();
    images.get(get("other:v2")).await.unwrap();

    let stream = open(daemon.channel(), "out").await;
    let collecting = tokio::spawn(collect(stream));
    let export = ImageExportStream { stream: "out".into(), ..Default::default() };
    client.transfer(ns(request(Any::pack(&store("other:v2")), Any::pack(&export)))).await.unwrap();
    let archive = collecting.await.unwrap();
    let mut names = Vec::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().to_string_lossy().into_owned());
    }
    assert!(names.iter().any(|n| n == "index.json"), "{names:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_an_image_is_pulled_with_progress_and_pushed() {
    let daemon = Harness::start().await;
    let registry = tokio::task::spawn_blocking(Registry::start).await.unwrap();
    let address = registry.host().to_owned();
    let registry = tokio::task::spawn_blocking(move || {
        Image::busybox().push(&registry, "bb:latest");
        registry
    })
    .await
    .unwrap();
    let mut client = TransferClient::new(daemon.channel());
    let at = |tag: &str| {
        let resolver = RegistryResolver { default_scheme: "http".into(), ..Default::default() };
        let reference = format!("{address}/bb:{tag}");
        Any::pack(&OciRegistry { reference, resolver: Some(resolver) })
    };
    let name = format!("{address}/bb:latest");

    let mut progress = open(daemon.channel(), "progress").await;
    let listening = tokio::spawn(async move {
        let mut events = Vec::new();
        while let Ok(Some(message)) = progress.answers.message().await {
            events.push(message.unpack::<Progress>().unwrap().unwrap().event);
        }
        events
    });
    let mut pull = request(at("latest"), Any::pack(&store(&name)));
    pull.options = Some(TransferOptions { progress_stream: "progress".into() });
    client.transfer(ns(pull)).await.unwrap();
    let events = listening.await.unwrap();
    for wanted in ["downloading", "complete", "saved"] {
        assert!(events.iter().any(|e| e == wanted), "{wanted} in {events:?}");
    }
    client.transfer(ns(request(Any::pack(&store(&name)), at("pushed")))).await.unwrap();
    client.transfer(ns(request(at("pushed"), Any::pack(&store("again"))))).await.unwrap();
    let gone = client.transfer(ns(request(at("gone"), Any::pack(&store("gone"))))).await;
    refused(gone, Code::NotFound, "not found");
    tokio::task::spawn_blocking(move || drop(registry)).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_layer_goes_into_a_snapshot_and_comes_out() {
    let daemon = Harness::start().await;
    let mut client = TransferClient::new(daemon.channel());
    let mut snapshots = SnapshotsClient::new(daemon.channel());
    let image = Image::builder().layer(Layer::new().file("f", 0o640, "text")).build();
    let blob = |n: usize| {
        let digest = image.manifest()["layers"][n]["digest"].as_str().unwrap().to_owned();
        image.blob(&digest.parse().unwrap()).to_vec()
    };
    let snapshot = |n: usize| Snapshot {
        snapshotter: "overlayfs".into(),
        key: format!("layer{n}"),
        parent: if n == 0 { String::new() } else { format!("layer{}", n - 1) },
        labels: [("containerd.io/gc.root".to_owned(), "x".to_owned())].into(),
        diff_id: image.diff_ids()[n].to_string(),
        source_date_epoch: None,
    };
    let read = |id: &str| ReadStream { stream: id.to_owned(), ..Default::default() };
    for n in [0, 1] {
        let id = format!("layer-in-{n}");
        let feeding = tokio::spawn(feed(open(daemon.channel(), &id).await, blob(n)));
        let unpack = request(Any::pack(&read(&id)), Any::pack(&snapshot(n)));
        client.transfer(ns(unpack)).await.unwrap();
        feeding.await.unwrap();
    }
    let stat = StatSnapshotRequest { snapshotter: "overlayfs".into(), key: "layer1".into() };
    let info = snapshots.stat(ns(stat)).await.unwrap().into_inner().info.unwrap();
    assert_eq!((info.kind, info.parent.as_str()), (3, "layer0"));

    // What made it comes out of it again.
    let collecting = tokio::spawn(collect(open(daemon.channel(), "out").await));
    let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    let out = WriteStream { stream: "out".into(), media_type };
    client.transfer(ns(request(Any::pack(&snapshot(1)), Any::pack(&out)))).await.unwrap();
    let layer = collecting.await.unwrap();
    let mut archive = tar::Archive::new(layer.as_slice());
    let names: Vec<_> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [std::path::PathBuf::from("f")]);

    // Another layer than promised, a name that is taken, a parent that is not there.
    let wrong = Snapshot { key: "wrong".into(), ..snapshot(1) };
    let missing = Snapshot { key: "m".into(), parent: "none".into(), ..snapshot(1) };
    for (n, (to, code)) in [
        (wrong, Code::FailedPrecondition),
        (snapshot(1), Code::AlreadyExists),
        (missing, Code::NotFound),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("refused-{n}");
        let feeding = tokio::spawn(feed(open(daemon.channel(), &id).await, blob(0)));
        let unpack = request(Any::pack(&read(&id)), Any::pack(&to));
        refused(client.transfer(ns(unpack)).await, code, "");
        feeding.await.unwrap();
    }
    let stat = StatSnapshotRequest { snapshotter: "overlayfs".into(), key: "wrong".into() };
    refused(snapshots.stat(ns(stat)).await, Code::NotFound, "wrong");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_moved_is_refused() {
    let daemon = Harness::start().await;
    let mut client = TransferClient::new(daemon.channel());
    let registry = || Any::pack(&OciRegistry { reference: "a.b/c:d".into(), resolver: None });
    let import = ImageImportStream { stream: "nope".into(), ..Default::default() };
    let past = client.transfer(ns(request(Any::pack(&import), registry()))).await;
    refused(past, Code::Unimplemented, "transfer from ImageImportStream to OCIRegistry");
    let unknown = Any { type_url: "x.Y".into(), value: Vec::new() };
    refused(client.transfer(ns(request(unknown, registry()))).await, Code::Unknown, "x.Y");
    let import = ImageImportStream { stream: "nope".into(), ..Default::default() };
    let missing = request(Any::pack(&import), Any::pack(&store("a")));
    refused(client.transfer(ns(missing)).await, Code::NotFound, "nope");
    refused(client.transfer(ns(TransferRequest::default())).await, Code::InvalidArgument, "source");

    let stream = open(daemon.channel(), "broken").await;
    let feeding = tokio::spawn(feed(stream, vec![7; 100_000]));
    let import = ImageImportStream { stream: "broken".into(), ..Default::default() };
    let garbage = request(Any::pack(&import), Any::pack(&store("a")));
    refused(client.transfer(ns(garbage)).await, Code::InvalidArgument, "");
    feeding.await.unwrap();
    daemon.stop().await;
}
