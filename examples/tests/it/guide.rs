//! Every block of `docs/client.md`, compiled and run.

pub(crate) use block_14::{freeze, thaw};

include!(concat!(env!("OUT_DIR"), "/guide.rs"));

use gantry_client::Client;
use gantry_testkit::{Daemon, DaemonKind, Image, Registry};

/// Runs every block that needs no criu.
async fn guide(daemon: &Daemon) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start();
    let reference = Image::busybox().push(&registry, "busybox:1");
    let address = daemon.address();
    let client = block_0::connect(address.to_str().unwrap(), daemon.namespace()).await.unwrap();
    let image = block_1::pull(&client, &reference).await.unwrap();
    assert_eq!(block_2::run(&client, &image).await.unwrap(), "hello\n");

    let container = block_3::make(&client, &image).await.unwrap();
    let task = block_4::start_with_log(&container, &dir.path().join("log")).await.unwrap();
    assert_eq!(block_5::exec(&container).await.unwrap(), "worker\n");
    block_6::watch(&task).await.unwrap();
    let (again, stopping) = (client.clone(), task.clone());
    let stop = async move { block_7::stop(&stopping).await.map(drop) };
    let code = block_8::next_exit(&again, stop).await.unwrap();
    assert!(code == 137 || code == 143, "{code}");
    container.delete(true).await.unwrap();

    let blob = block_9::store(&client, b"some content").await.unwrap();
    assert_eq!(blob.size, 12);
    let copied = format!("{}/copy:1", registry.host());
    assert_eq!(block_10::copy(&client, &image, &copied).await.unwrap().len(), 1);
    assert_eq!(registry.status_of("/v2/copy/manifests/1"), 200);
    assert!(!block_11::exists(&client, "hello").await.unwrap());
    assert!(block_12::options("/usr/bin/runc").is_ok());
    assert_eq!(block_13::replaced().await.unwrap(), "fixed");
    assert_eq!(block_16::engine(client.clone(), &image, dir.path()).await.unwrap(), 3);
    client.images().delete(image.name(), true).await.unwrap();
}

async fn in_this_process() {
    let dir = tempfile::Builder::new().prefix("gke").tempdir().unwrap();
    let (daemon, client): (_, Client) = block_15::embedded(dir.path()).await.unwrap();
    assert!(client.is_serving().await.unwrap());
    assert_eq!(client.containers().list(&[]).await.unwrap().len(), 0);
    assert!(client.leases().guard().await.is_ok());
    drop(client);
    daemon.shutdown().await;
    // Whoever adds a block adds its run here. Block 14 needs criu: see `story.rs`.
    assert_eq!(BLOCKS, 17);
}

fn with(kind: DaemonKind) {
    let daemon = match kind {
        DaemonKind::Gantryd => Daemon::gantryd().start(),
        DaemonKind::Containerd => Daemon::containerd().start(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(guide(&daemon));
    drop(runtime);
    daemon.assert_clean();
}

#[test]
fn root_guide_on_gantryd() {
    with(DaemonKind::Gantryd);
}

#[test]
fn root_guide_on_containerd() {
    with(DaemonKind::Containerd);
}

#[test]
fn root_guide_in_this_process() {
    tokio::runtime::Runtime::new().unwrap().block_on(in_this_process());
}
