//! Calls that are dropped half way leave nothing behind.

use std::path::Path;
use std::time::Duration;

use gantry_client::{Client, FifoSet, Image, Stdio};
use gantry_testkit::{Daemon, seed};

use crate::support::{busybox, on_both, remove_busybox, shell};

/// Times each kind of call is dropped; `GANTRY_CANCEL_ROUNDS` for more.
const ROUNDS: usize = 6;

/// Longest a call may run before it is dropped, in microseconds: the length of a task's making.
const DROP_AFTER_US_MAX: u64 = 150_000;

/// How long what was dropped may take to be undone.
const UNDO_MAX: Duration = Duration::from_secs(60);

/// A container with a task, an exec and FIFOs, all given up with the future.
async fn whole_run(client: Client, image: Image, fifos: &Path) -> gantry_client::Result<()> {
    let container = client
        .container_builder("whole")
        .from_image(&image)
        .new_snapshot("whole")
        .spec_option(|spec| spec.args(["sleep", "1000"]))
        .create()
        .await?;
    let set = FifoSet::create(Some(fifos), "whole", true, false)?;
    let _streams = set.stdio().open()?;
    let task = container.new_task(set.stdio()).create().await?;
    let process = container.spec()?.process().clone().unwrap_or_default();
    task.exec("e", &process, &Stdio::null()).await?;
    Ok(())
}

/// What nobody gave up on purpose: the owner of a container that was given to it removes it.
async fn clean_up(client: &Client, id: &str) {
    let Ok(container) = client.container(id).await else { return };
    if let Ok(task) = container.task().await {
        let _ = task.delete_with_kill().await;
    }
    let _ = container.delete(true).await;
}

async fn nothing_left(client: &Client, kept: usize, fifos: &Path) {
    let deadline = std::time::Instant::now() + UNDO_MAX;
    loop {
        let containers = client.containers().list(&[]).await.unwrap();
        let tasks = client.tasks().list().await.unwrap();
        let leases = client.leases().list(&[]).await.unwrap();
        let snapshots = client.snapshots("overlayfs").list(&[]).await.unwrap();
        let files = std::fs::read_dir(fifos).unwrap().count();
        let left = format!("{containers:?} {tasks:?} {leases:?} {snapshots:?}, {files} FIFOs");
        let count = containers.len() + tasks.len() + leases.len() + files;
        if count == 0 && snapshots.len() == kept {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "left: {left}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn cancel_story(_: &mut Daemon, client: Client) {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let rounds = std::env::var("GANTRY_CANCEL_ROUNDS").ok().and_then(|n| n.parse().ok());
    let dir = tempfile::tempdir().unwrap();
    let image = busybox(&client).await;
    let kept = client.snapshots("overlayfs").list(&[]).await.unwrap().len();
    for _ in 0..rounds.unwrap_or(ROUNDS) {
        // A container alone.
        let builder = client.container_builder("c").from_image(&image).new_snapshot("c");
        let after = Duration::from_micros(random.u64(..DROP_AFTER_US_MAX / 4));
        if tokio::time::timeout(after, builder.create()).await.is_ok() {
            clean_up(&client, "c").await;
        }
        nothing_left(&client, kept, dir.path()).await;
        // A task of a container that stays.
        let container = shell(&client, &image, "t", "sleep 1000").await;
        let after = Duration::from_micros(random.u64(..DROP_AFTER_US_MAX));
        let making = container.new_task(&Stdio::null()).create();
        if let Ok(made) = tokio::time::timeout(after, making).await {
            made.unwrap().delete_with_kill().await.unwrap();
        }
        let deadline = std::time::Instant::now() + UNDO_MAX;
        while let Err(e) = container.delete(true).await {
            assert!(std::time::Instant::now() < deadline, "{e:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        nothing_left(&client, kept, dir.path()).await;
        // A lease, a snapshot.
        let after = Duration::from_micros(random.u64(..DROP_AFTER_US_MAX / 16));
        let _ = tokio::time::timeout(after, client.leases().guard()).await;
        let snapshots = client.snapshots("overlayfs");
        let parent = image.resolve().await.unwrap().parent();
        let preparing = snapshots.prepare("s", &parent, Default::default());
        if tokio::time::timeout(after, preparing).await.is_ok() {
            snapshots.remove("s").await.unwrap();
        }
        nothing_left(&client, kept, dir.path()).await;
        // All of it in one future. What it was given before it was dropped is its own to remove.
        let after = Duration::from_micros(random.u64(..DROP_AFTER_US_MAX * 2));
        let run = whole_run(client.clone(), image.clone(), dir.path());
        let _ = tokio::time::timeout(after, run).await;
        let deadline = std::time::Instant::now() + UNDO_MAX;
        loop {
            clean_up(&client, "whole").await;
            let gone = client.container("whole").await.is_err_and(|e| e.is_not_found());
            let snapshot = client.snapshots("overlayfs").stat("whole").await;
            if gone && snapshot.is_err_and(|e| e.is_not_found()) {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "it does not go");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        nothing_left(&client, kept, dir.path()).await;
    }
    remove_busybox(&client).await;
}

on_both!(cancel_story, root_cancel_on_containerd, root_cancel_on_gantryd);
