//! Daemons that go away in the middle of a call.

use std::sync::mpsc;
use std::time::Duration;

use gantry_client::{Client, PullOptions, Stdio};
use gantry_testkit::{Daemon, Image, Registry};

use crate::support::{busybox, on_both, remove_busybox, shell};

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

async fn wait_story(daemon: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let container = shell(&client, &image, "c1", "sleep 3; exit 5").await;
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    let hasty = client.with_reconnect_patience(Duration::ZERO).tasks().process("c1", "");
    let hasty = tokio::spawn(async move { hasty.wait().await });
    let waiters = [task.clone(), task.clone()].map(|t| tokio::spawn(async move { t.wait().await }));
    // Only to have the calls under way; sooner they would be made after the restart.
    tokio::time::sleep(Duration::from_millis(300)).await;
    daemon.kill9();
    daemon.start_again();
    let broken = tokio::time::timeout(PATIENCE, hasty).await.unwrap().unwrap();
    assert!(broken.as_ref().is_err_and(gantry_client::Error::is_unavailable), "{broken:?}");
    for waiter in waiters {
        let exit = tokio::time::timeout(PATIENCE, waiter).await.unwrap().unwrap();
        assert_eq!(exit.unwrap().code, 5);
    }
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    remove_busybox(&client).await;
}

async fn pull_story(daemon: &mut Daemon, client: Client) {
    let registry = Registry::start();
    let image = Image::builder().big_layer(24 << 20, 7).build();
    let reference = image.push(&registry, "big:1");
    let (tell, told) = mpsc::sync_channel(1);
    let pulling = {
        let (client, options) = (client.clone(), PullOptions::new(&reference).plain_http());
        tokio::spawn(async move {
            client
                .pull_with(options, |step| {
                    if step.event == "downloading" {
                        let _ = tell.try_send(());
                    }
                })
                .await
        })
    };
    tokio::task::block_in_place(|| told.recv_timeout(PATIENCE)).unwrap();
    daemon.kill9();
    daemon.start_again();
    let pulled = tokio::time::timeout(PATIENCE, pulling).await.unwrap().unwrap().unwrap();
    assert_eq!(pulled.target().digest, image.top().digest);
    assert!(pulled.is_unpacked("overlayfs").await.unwrap());
    for lease in client.leases().list(&[]).await.unwrap() {
        // Those of the daemon that was killed.
        client.leases().delete(&lease.id, true).await.unwrap();
    }
    client.images().delete(&reference, true).await.unwrap();
    assert!(client.content().statuses(&[]).await.unwrap().is_empty());
}

on_both!(wait_story, root_wait_over_restart_on_containerd, root_wait_over_restart_on_gantryd);
on_both!(pull_story, root_pull_over_restart_on_containerd, root_pull_over_restart_on_gantryd);
