//! Connections, and each service over one of the caller's own.

use std::time::Duration;

use gantry_client::core::{Any, Descriptor, Digest, Labels};
use gantry_client::{
    Client, DiffOptions, Error, LeaseOptions, MESSAGE_SIZE_MAX, SnapshotKind, Stdio,
};
use gantry_testkit::Daemon;
use tokio::net::UnixStream;

use crate::support::{busybox, on_both, remove_busybox, shell};

/// Longest wait for a daemon that is being started.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each service answers alone, over connections the caller makes.
async fn own_connection_story(daemon: &mut Daemon, client: Client) {
    let address = daemon.address();
    let own = Client::from_connector(move || UnixStream::connect(address.clone()));
    let own = own.in_namespace(client.namespace());
    assert_eq!(own.version().await.unwrap(), client.version().await.unwrap());
    assert!(own.is_serving().await.unwrap());
    assert!(own.containers().list(&[]).await.unwrap().is_empty());
    assert!(own.content().list(&[]).await.unwrap().is_empty());
    assert!(own.images().list(&[]).await.unwrap().is_empty());
    assert!(own.leases().list(&[]).await.unwrap().is_empty());
    assert!(own.snapshots("overlayfs").list(&[]).await.unwrap().is_empty());
    assert!(own.tasks().list().await.unwrap().is_empty());
    assert!(!own.introspection().plugins(&[]).await.unwrap().is_empty());
    own.events().subscribe(&[]).await.unwrap();
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    let other = format!("{}-other", own.namespace());
    own.namespaces().create(&other, &labels).await.unwrap();
    assert!(own.namespaces().create(&other, &labels).await.unwrap_err().is_already_exists());
    assert_eq!(own.namespaces().get(&other).await.unwrap().labels, labels);
    // What is in one namespace is not in another.
    let lease = LeaseOptions { id: "l".into(), ..LeaseOptions::default() };
    own.in_namespace(&other).leases().create(lease).await.unwrap();
    assert!(own.leases().list(&[]).await.unwrap().is_empty());
    own.in_namespace(&other).leases().delete("l", true).await.unwrap();
    own.namespaces().delete(&other).await.unwrap();
    assert!(own.namespaces().list().await.unwrap().iter().all(|n| n.name != other));
    let nameless = own.in_namespace("").containers().list(&[]).await.unwrap_err();
    assert!(nameless.is_failed_precondition(), "{nameless:?}");

    // Messages may be large: the record of a container that somebody keeps much in.
    let value = Any { type_url: "example.com/large".into(), value: vec![7; MESSAGE_SIZE_MAX / 2] };
    let large = own.container_builder("large").extension("large", value.clone());
    large.spec_option(|spec| spec.args(["true"])).create().await.unwrap();
    let large = client.container("large").await.unwrap();
    assert_eq!(large.extensions().await.unwrap()["large"], value);
    large.delete(false).await.unwrap();
}

/// Snapshots and what lies between them, as layers and back.
async fn diff_story(_: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let guard = client.leases().guard().await.unwrap();
    let leased = guard.client().clone();
    let snapshots = leased.snapshots("overlayfs");
    let parent = image.resolve().await.unwrap().parent();
    let container = shell(&leased, &image, "w", "echo written >/file; rm /bin/cat").await;
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    task.delete().await.unwrap();

    let lower = snapshots.view("v", &parent, Labels::new()).await.unwrap();
    assert_eq!(snapshots.mounts("v").await.unwrap(), lower);
    let upper = snapshots.mounts("w").await.unwrap();
    let layer = leased.diff().diff(&lower, &upper, DiffOptions::default()).await.unwrap();
    assert_eq!(layer.media_type, "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(leased.content().info(&layer.digest).await.unwrap().size, layer.size);
    let onto = snapshots.prepare("a", &parent, Labels::new()).await.unwrap();
    let applied = leased.diff().apply(&layer, &onto).await.unwrap();
    assert_eq!(applied.media_type, "application/vnd.oci.image.layer.v1.tar");
    assert_ne!(applied.digest, layer.digest, "the digest of the plain tar");
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    snapshots.commit("b", "a", labels.clone()).await.unwrap();
    let record = snapshots.stat("b").await.unwrap();
    assert_eq!(
        (record.kind, &record.parent, &record.labels),
        (SnapshotKind::Committed, &parent, &labels)
    );
    let found = snapshots.list(&["labels.a==b".to_owned()]).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");

    // What was written is there in a container of the new snapshot, what was removed is not.
    snapshots.prepare("x", "b", Labels::new()).await.unwrap();
    let check = "read x </file; test $x = written && test ! -e /bin/cat";
    let top = leased
        .container_builder("x")
        .from_image(&image)
        .snapshot("overlayfs", "x")
        .spec_option(move |spec| spec.args(["sh", "-c", check]))
        .create()
        .await
        .unwrap();
    let task = top.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    task.delete().await.unwrap();
    // And of mounts that are given by hand.
    let again = snapshots.prepare("again", "b", Labels::new()).await.unwrap();
    let task = top.new_task(&Stdio::null()).rootfs(again).create();
    let task = task.await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    task.delete().await.unwrap();

    // Rules of snapshots.
    assert!(snapshots.remove("b").await.unwrap_err().is_failed_precondition());
    assert!(snapshots.commit("c", "v", Labels::new()).await.unwrap_err().is_failed_precondition());
    assert!(snapshots.prepare("v", "", Labels::new()).await.unwrap_err().is_already_exists());
    assert!(snapshots.prepare("y", "none", Labels::new()).await.unwrap_err().is_not_found());
    let absent = Descriptor::new("x", Digest::of(b"absent"), 1);
    assert!(leased.diff().apply(&absent, &upper).await.is_err());
    // The container's snapshot stays when it is not asked for, and may be gone when it is.
    top.delete(false).await.unwrap();
    snapshots.remove("x").await.unwrap();
    snapshots.remove("w").await.unwrap();
    container.delete(true).await.unwrap();
    for key in ["v", "again", "b"] {
        snapshots.remove(key).await.unwrap();
    }
    assert!(snapshots.remove("v").await.unwrap_err().is_not_found());
    guard.release().await.unwrap();
    remove_busybox(&client).await;
}

/// A daemon that goes and comes back: the client needs not be told.
async fn away_story(daemon: &mut Daemon, client: Client) {
    assert!(!client.version().await.unwrap().version.is_empty());
    daemon.stop();
    assert!(client.version().await.unwrap_err().is_unavailable());
    assert!(!client.is_serving().await.unwrap());
    let impatient = client.wait_until_serving(Duration::from_millis(50)).await;
    assert!(impatient.unwrap_err().is_deadline_exceeded());
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.wait_until_serving(PATIENCE).await })
    };
    daemon.start_again();
    waiting.await.unwrap().unwrap();
    assert!(client.containers().list(&[]).await.unwrap().is_empty());

    // A deadline of one's own, also for what takes as long as it takes.
    let image = busybox(&client).await;
    let container = shell(&client, &image, "c", "sleep 1000").await;
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    let hasty = client.with_timeout(Duration::from_millis(200)).tasks().process("c", "");
    let late: Error = hasty.wait().await.unwrap_err();
    assert!(late.is_deadline_exceeded(), "{late:?}");
    task.delete_with_kill().await.unwrap();
    container.delete(true).await.unwrap();
    remove_busybox(&client).await;
}

on_both!(own_connection_story, root_own_connection_on_containerd, root_own_connection_on_gantryd);
on_both!(diff_story, root_diff_on_containerd, root_diff_on_gantryd);
on_both!(away_story, root_daemon_away_on_containerd, root_daemon_away_on_gantryd);
