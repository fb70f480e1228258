//! Daemons that go away in the middle of a call.

use std::sync::mpsc;
use std::time::Duration;

use gantry_client::{Client, FifoSet, PullOptions, Stdio, Streams};
use gantry_testkit::{Daemon, Image, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

/// Streams are between the shim and the client: a daemon that goes away does not disturb them.
async fn attach_story(daemon: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let container = shell(&client, &image, "c1", "cat; exit 6").await;
    let dir = tempfile::tempdir().unwrap();
    let fifos = FifoSet::create(Some(dir.path()), "c1", true, false).unwrap();
    let mut streams = fifos.stdio().open().unwrap();
    let task = container.new_task(fifos.stdio()).create().await.unwrap();
    task.start().await.unwrap();
    echo(&mut streams, b"before\n").await;
    daemon.kill9();
    echo(&mut streams, b"without\n").await;
    // Attaching needs the daemon, and says so.
    let lost = task.attach().await.unwrap_err();
    assert!(lost.is_unavailable(), "{lost:?}");
    daemon.start_again();
    echo(&mut streams, b"after\n").await;
    drop(streams);
    let mut again = task.attach().await.unwrap();
    echo(&mut again, b"again\n").await;
    drop(again.stdin.take());
    task.close_stdin().await.unwrap();
    let exit = tokio::time::timeout(PATIENCE, task.wait()).await.unwrap().unwrap();
    assert_eq!(exit.code, 6);
    assert_eq!(again.output().await.unwrap().stdout, b"");
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    remove_busybox(&client).await;
}

/// What goes in comes out.
async fn echo(streams: &mut Streams, line: &[u8]) {
    let mut bytes = vec![0; line.len()];
    streams.stdin.as_mut().unwrap().write_all(line).await.unwrap();
    let read = streams.stdout.as_mut().unwrap().read_exact(&mut bytes);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(bytes, line);
}

on_both!(attach_story, root_attach_over_restart_on_containerd, root_attach_over_restart_on_gantryd);
on_both!(wait_story, root_wait_over_restart_on_containerd, root_wait_over_restart_on_gantryd);
on_both!(pull_story, root_pull_over_restart_on_containerd, root_pull_over_restart_on_gantryd);
