//! A daemon, a client and a pulled image.

use gantry_client::core::Digest;
use gantry_client::{Client, ImageRecord, ResolvedImage, UnpackOptions};
use gantry_testkit::{Daemon, DaemonKind, Image};

/// Runs `scenario` on a runtime of its own against a fresh daemon, which must be clean after.
pub(crate) fn with_daemon(kind: DaemonKind, scenario: impl AsyncFnOnce(&mut Daemon, Client)) {
    let daemon = match kind {
        DaemonKind::Gantryd => Daemon::gantryd().start(),
        DaemonKind::Containerd => Daemon::containerd().start(),
    };
    run_on(daemon, scenario);
}

/// As [`with_daemon`], against a daemon that runs already.
pub(crate) fn run_on(mut daemon: Daemon, scenario: impl AsyncFnOnce(&mut Daemon, Client)) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client =
            Client::builder(daemon.address()).namespace(daemon.namespace()).build().unwrap();
        scenario(&mut daemon, client).await;
    });
    drop(runtime);
    daemon.assert_clean();
}

/// Puts an image into the daemon through the content service alone, and unpacks it.
pub(crate) async fn load(client: &Client, image: &Image, name: &str) -> ResolvedImage {
    let guard = client.leases().guard().await.unwrap();
    let leased = guard.client();
    for descriptor in image.descriptors() {
        let bytes = image.blob(&descriptor.digest).to_vec().into();
        let labels = children_labels(image, &descriptor.digest);
        leased.content().write_blob(descriptor, bytes, &labels).await.unwrap();
    }
    leased.images().create(&ImageRecord::new(name, image.top().clone())).await.unwrap();
    let resolved = leased.resolve_image(name, None).await.unwrap();
    leased.unpack(&resolved, &UnpackOptions::default()).await.unwrap();
    guard.release().await.unwrap();
    resolved
}

/// Labels by which the garbage collector finds what a manifest refers to.
fn children_labels(image: &Image, digest: &Digest) -> gantry_client::core::Labels {
    let mut labels = gantry_client::core::Labels::new();
    if *digest != image.top().digest {
        return labels;
    }
    for (n, child) in image.descriptors().iter().enumerate() {
        if child.digest != *digest {
            labels.insert(format!("containerd.io/gc.ref.content.{n}"), child.digest.to_string());
        }
    }
    labels
}

pub(crate) use gantry_testkit::on_both;

/// The name of [`busybox`].
pub(crate) const BUSYBOX: &str = "example.com/b:1";

/// An image to run, unpacked.
pub(crate) async fn busybox(client: &Client) -> gantry_client::Image {
    load(client, &Image::busybox(), BUSYBOX).await;
    client.image(BUSYBOX).await.unwrap()
}

/// Removes [`busybox`] and what nothing refers to.
pub(crate) async fn remove_busybox(client: &Client) {
    client.images().delete(BUSYBOX, true).await.unwrap();
}

/// A container of `image` that runs `script`, with a root filesystem of its own.
pub(crate) async fn shell(
    client: &Client,
    image: &gantry_client::Image,
    id: &str,
    script: &str,
) -> gantry_client::Container {
    let script = script.to_owned();
    client
        .container_builder(id)
        .from_image(image)
        .new_snapshot(id)
        .spec_option(move |spec| spec.args(["sh", "-c", &script]))
        .create()
        .await
        .unwrap()
}
