//! A daemon, a client and a pulled image.

use gantry_client::core::Digest;
use gantry_client::{Client, ImageRecord, ResolvedImage, UnpackOptions};
use gantry_testkit::{Daemon, DaemonKind, Image};

/// Runs `scenario` on a runtime of its own against a fresh daemon, which must be clean after.
pub(crate) fn with_daemon(kind: DaemonKind, scenario: impl AsyncFnOnce(&mut Daemon, Client)) {
    let mut daemon = match kind {
        DaemonKind::Gantryd => Daemon::gantryd().start(),
        DaemonKind::Containerd => Daemon::containerd().start(),
    };
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
