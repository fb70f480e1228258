//! Content, images, leases, namespaces, introspection.

use std::time::Duration;

use bytes::Bytes;
use gantry_client::core::{Descriptor, Digest, Labels};
use gantry_client::{Client, ImageRecord, LeaseOptions, WriterOptions};
use gantry_testkit::{Daemon, DaemonKind, Image};

use crate::support::{load, with_daemon};

async fn content_story(_: &mut Daemon, client: Client) {
    let content = client.content();
    let bytes = Bytes::from(vec![7_u8; 3 << 20]);
    let digest = Digest::of(&bytes);
    assert!(content.info(&digest).await.unwrap_err().is_not_found());

    // A write that stops in the middle goes on where it was.
    let options = WriterOptions {
        reference: "r".into(),
        total: bytes.len() as i64,
        expected: Some(digest.clone()),
    };
    let mut writer = content.writer(options.clone()).await.unwrap();
    writer.write(bytes.slice(..1 << 20)).await.unwrap();
    drop(writer);
    let statuses = content.statuses(&[]).await.unwrap();
    assert_eq!((statuses[0].reference.as_str(), statuses[0].offset), ("r", 1 << 20));
    let mut writer = content.writer(options.clone()).await.unwrap();
    assert_eq!(writer.offset(), 1 << 20);
    writer.write(bytes.slice(1 << 20..)).await.unwrap();
    let label = Labels::from([("containerd.io/gc.root".to_owned(), "yes".to_owned())]);
    assert_eq!(writer.commit(&label).await.unwrap(), digest);
    assert!(content.writer(options).await.unwrap_err().is_already_exists());

    assert_eq!(content.read(&digest).await.unwrap(), bytes);
    let mut tail = Vec::new();
    let read = content
        .read_to(&digest, 3 << 20, async |b| {
            tail.extend_from_slice(&b);
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!((read, tail.len()), (0, 0));
    let label = Labels::from([("a".to_owned(), "b".to_owned())]);
    let info = content.set_labels(&digest, &label).await.unwrap();
    assert_eq!((info.size, info.labels["a"].as_str()), (3 << 20, "b"));
    assert_eq!(content.list(&["labels.a==b".to_owned()]).await.unwrap().len(), 1);
    content.delete(&digest).await.unwrap();

    // What is promised must be kept.
    let wrong = Descriptor::new("x", Digest::of(b"other"), 4);
    let refused = content.write_blob(&wrong, Bytes::from_static(b"this"), &Labels::new()).await;
    assert!(refused.unwrap_err().is_failed_precondition());
    for status in content.statuses(&[]).await.unwrap() {
        content.abort(&status.reference).await.unwrap();
    }
}

async fn records_story(_: &mut Daemon, client: Client) {
    let image = load(&client, &Image::busybox(), "example.com/b:1").await;
    assert!(client.is_unpacked(&image, "overlayfs").await.unwrap());
    let record = ImageRecord::new("example.com/b:1", image.target.clone());
    assert!(client.images().create(&record).await.unwrap_err().is_already_exists());
    let label = Labels::from([("k".to_owned(), "v".to_owned())]);
    client.images().set_labels("example.com/b:1", &label).await.unwrap();
    let found = client.images().list(&["labels.k==v".to_owned()]).await.unwrap();
    assert_eq!(found[0].target, image.target);
    assert_eq!(client.snapshots("overlayfs").list(&[]).await.unwrap().len(), 1);
    let usage = client.snapshots("overlayfs").usage(image.chain_id().as_str()).await.unwrap();
    assert!(usage.size > 100_000 && usage.inodes > 10, "{usage:?}");
    client.images().delete("example.com/b:1", true).await.unwrap();
    assert_eq!(client.content().list(&[]).await.unwrap(), Vec::new());
    assert!(client.images().get("example.com/b:1").await.unwrap_err().is_not_found());

    let lease = client.leases().create(LeaseOptions::default()).await.unwrap();
    client.leases().add_resource(&lease.id, "snapshots/overlayfs", "x").await.unwrap();
    let held = client.leases().resources(&lease.id).await.unwrap();
    assert_eq!(held, [("snapshots/overlayfs".to_owned(), "x".to_owned())]);
    client.leases().delete(&lease.id, true).await.unwrap();
    assert!(client.leases().list(&[]).await.unwrap().is_empty());

    let names = client.namespaces().list().await.unwrap();
    assert!(names.iter().any(|n| n.name == client.namespace()));
    assert!(client.is_serving().await.unwrap());
    assert!(!client.version().await.unwrap().version.is_empty());
    let plugins = client.introspection().plugins(&["id==overlayfs".to_owned()]).await.unwrap();
    assert_eq!(plugins[0].kind, "io.containerd.snapshotter.v1");
    assert!(!client.introspection().server().await.unwrap().uuid.is_empty());
}

/// What a lease holds stays, until it ends or its time is over.
async fn leases_story(_: &mut Daemon, client: Client) {
    let leases = client.leases();
    let options = LeaseOptions {
        labels: Labels::from([("a".to_owned(), "b".to_owned())]),
        ..LeaseOptions::default()
    };
    let lease = leases.create(options).await.unwrap();
    let (nanos, random) = lease.id.split_once('-').unwrap();
    assert!(nanos.bytes().all(|b| b.is_ascii_digit()) && random.len() == 4, "{}", lease.id);
    assert!(lease.created_at > std::time::SystemTime::UNIX_EPOCH);
    let found = leases.list(&["labels.a==b".to_owned()]).await.unwrap();
    assert_eq!(found, std::slice::from_ref(&lease));
    assert!(leases.list(&["id==none".to_owned()]).await.unwrap().is_empty());

    // Calls under it add to it.
    let blob = Descriptor::new("x", Digest::of(b"held"), 4);
    let leased = client.under_lease(&lease.id);
    leased.content().write_blob(&blob, Bytes::from_static(b"held"), &Labels::new()).await.unwrap();
    leased.snapshots("overlayfs").prepare("s", "", Labels::new()).await.unwrap();
    let mut held = leases.resources(&lease.id).await.unwrap();
    held.sort();
    let expected = [
        ("content".to_owned(), blob.digest.to_string()),
        ("snapshots/overlayfs".to_owned(), "s".to_owned()),
    ];
    assert_eq!(held, expected);
    let collect = async || {
        let other = leases.create(LeaseOptions::default()).await.unwrap();
        leases.delete(&other.id, true).await.unwrap();
    };
    collect().await;
    assert!(client.content().info(&blob.digest).await.is_ok());
    leases.remove_resource(&lease.id, "snapshots/overlayfs", "s").await.unwrap();
    collect().await;
    let snapshot = client.snapshots("overlayfs").stat("s").await;
    assert!(snapshot.unwrap_err().is_not_found());
    leases.delete(&lease.id, true).await.unwrap();
    assert!(client.content().info(&blob.digest).await.unwrap_err().is_not_found());
    assert!(leases.delete(&lease.id, false).await.unwrap_err().is_not_found());

    let options =
        LeaseOptions { expires: Some(Duration::from_millis(1)), ..LeaseOptions::default() };
    leases.create(options).await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !leases.list(&[]).await.unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "it does not expire");
        collect().await;
    }
}

#[test]
fn root_leases_on_containerd() {
    with_daemon(DaemonKind::Containerd, leases_story);
}

#[test]
fn root_leases_on_gantryd() {
    with_daemon(DaemonKind::Gantryd, leases_story);
}

#[test]
fn root_content_on_containerd() {
    with_daemon(DaemonKind::Containerd, content_story);
}

#[test]
fn root_content_on_gantryd() {
    with_daemon(DaemonKind::Gantryd, content_story);
}

#[test]
fn root_records_on_containerd() {
    with_daemon(DaemonKind::Containerd, records_story);
}

#[test]
fn root_records_on_gantryd() {
    with_daemon(DaemonKind::Gantryd, records_story);
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_unavailable() {
    let client = Client::connect("/no/such/socket").unwrap();
    let failure = client.version().await.unwrap_err();
    assert!(failure.is_unavailable(), "{failure:?}");
    assert!(failure.text().contains("No such file"), "{failure}");
    assert!(!client.is_serving().await.unwrap());
    assert!(Client::connect("").is_err());
}
