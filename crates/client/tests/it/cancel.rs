//! Calls that are dropped half way leave nothing behind.

use std::path::Path;
use std::time::Duration;

use gantry_client::{
    CheckpointImageOptions, Client, FifoSet, Image, ImportOptions, LeaseOptions, ProcessStatus,
    PullOptions, PushOptions, Stdio,
};
use gantry_testkit::{Daemon, Registry, criu_dir, seed};

use crate::support::{BUSYBOX, busybox, on_both, remove_busybox, run_on, shell};

/// Times each kind of call is dropped; `GANTRY_CANCEL_ROUNDS` for more.
const ROUNDS: usize = 6;

/// As [`ROUNDS`], for calls that take long.
const LONG_ROUNDS: usize = 3;

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
    task.start().await?;
    let process = container.spec()?.process().clone().unwrap_or_default();
    task.exec("e", &process, &Stdio::null()).await?.start().await?;
    task.attach().await?;
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

fn rounds(usual: usize) -> usize {
    std::env::var("GANTRY_CANCEL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

async fn cancel_story(_: &mut Daemon, client: Client) {
    let mut random = fastrand::Rng::with_seed(seed());
    let dir = tempfile::tempdir().unwrap();
    let image = busybox(&client).await;
    let kept = client.snapshots("overlayfs").list(&[]).await.unwrap().len();
    for _ in 0..rounds(ROUNDS) {
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
            // Nothing holds it: it may have been collected.
            match snapshots.remove("s").await {
                Err(e) if e.is_not_found() => {}
                removed => removed.unwrap(),
            }
        }
        nothing_left(&client, kept, dir.path()).await;
        // All of it in one future. What it was given before it was dropped is its own to remove.
        let after = Duration::from_micros(random.u64(..DROP_AFTER_US_MAX * 3));
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

/// Removes the image, if it was made, until nothing of it is left. A pull that is given up leaves
/// what it has fetched of a blob for the next one, for a day at most.
async fn no_image_left(client: &Client, name: &str, ingests_too: bool) {
    let deadline = std::time::Instant::now() + UNDO_MAX;
    loop {
        let _ = client.images().delete(name, false).await;
        // A collection that is waited for.
        let leases = client.leases();
        let made = leases.create(LeaseOptions::default()).await.unwrap();
        leases.delete(&made.id, true).await.unwrap();
        let leases = leases.list(&[]).await.unwrap();
        let images = client.images().list(&[]).await.unwrap();
        let content = client.content().list(&[]).await.unwrap();
        let snapshots = client.snapshots("overlayfs").list(&[]).await.unwrap();
        let ingests = client.content().statuses(&[]).await.unwrap();
        let count = leases.len() + images.len() + content.len() + snapshots.len();
        if count == 0 && (ingests.is_empty() || !ingests_too) {
            return;
        }
        let left = format!("{leases:?} {images:?} {content:?} {snapshots:?} {ingests:?}");
        assert!(std::time::Instant::now() < deadline, "left: {left}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Images on their way in and out.
async fn cancel_images_story(_: &mut Daemon, client: Client) {
    let mut random = fastrand::Rng::with_seed(seed());
    let registry = Registry::start();
    let source = gantry_testkit::Image::builder().layers(3).build();
    let reference = source.push(&registry, "image:1");
    let pull = |local| PullOptions { local, ..PullOptions::new(&reference).plain_http() };
    // How long each takes, so that they are dropped all over their length.
    let begun = std::time::Instant::now();
    client.pull(pull(false)).await.unwrap();
    let length = begun.elapsed().as_micros();
    let max = u64::try_from(length).unwrap().clamp(10_000, DROP_AFTER_US_MAX * 10);
    let mut archive = Vec::new();
    client.export(std::slice::from_ref(&reference), true, &mut archive).await.unwrap();
    no_image_left(&client, &reference, true).await;
    for _ in 0..rounds(ROUNDS) {
        for local in [false, true] {
            let after = Duration::from_micros(random.u64(..max));
            let _ = tokio::time::timeout(after, client.pull(pull(local))).await;
            no_image_left(&client, &reference, false).await;
            for status in client.content().statuses(&[]).await.unwrap() {
                client.content().abort(&status.reference).await.unwrap();
            }
        }
        let after = Duration::from_micros(random.u64(..max));
        let read = std::io::Cursor::new(archive.clone());
        let unpack = Some("overlayfs".to_owned());
        let options = ImportOptions { unpack, all_platforms: true, ..ImportOptions::default() };
        let _ = tokio::time::timeout(after, client.import(read, options)).await;
        no_image_left(&client, &reference, true).await;

        let image = client.pull(pull(true).unpack(None)).await.unwrap();
        let after = Duration::from_micros(random.u64(..max));
        let _ = tokio::time::timeout(after, image.unpack("overlayfs")).await;
        let copy = format!("{}/copy-{}:1", registry.host(), random.u32(..));
        let after = Duration::from_micros(random.u64(..max));
        let push = client.push(PushOptions::new(&reference, copy).plain_http());
        let _ = tokio::time::timeout(after, push).await;
        let (after, mut out) = (Duration::from_micros(random.u64(..max)), Vec::new());
        let names = [reference.clone()];
        let _ = tokio::time::timeout(after, client.export(&names, true, &mut out)).await;
        no_image_left(&client, &reference, true).await;
    }
}

/// Containers on their way into an image and out of it.
async fn cancel_checkpoint_story(_: &mut Daemon, client: Client) {
    const SAVED: &str = "example.com/saved:1";
    let mut random = fastrand::Rng::with_seed(seed());
    let dir = tempfile::tempdir().unwrap();
    let image = busybox(&client).await;
    let kept = client.snapshots("overlayfs").list(&[]).await.unwrap().len();
    let container = shell(&client, &image, "c", "while :; do sleep 0.1; done").await;
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    let options = || CheckpointImageOptions::default().named(SAVED);
    let begun = std::time::Instant::now();
    let saved = task.checkpoint_image(options()).await.unwrap();
    let max = u64::try_from(begun.elapsed().as_micros()).unwrap();
    for _ in 0..rounds(LONG_ROUNDS) {
        let after = Duration::from_micros(random.u64(..max));
        let other = CheckpointImageOptions::default().named("example.com/dropped:1");
        let made = tokio::time::timeout(after, task.checkpoint_image(other)).await;
        if let Ok(made) = made {
            client.images().delete(made.unwrap().name(), true).await.unwrap();
        }
        let deadline = std::time::Instant::now() + UNDO_MAX;
        loop {
            let status = task.state().await.unwrap().status;
            let images = client.images().list(&[]).await.unwrap();
            let leases = client.leases().list(&[]).await.unwrap();
            let snapshots = client.snapshots("overlayfs").list(&[]).await.unwrap();
            let count = (images.len(), leases.len(), snapshots.len());
            if status == ProcessStatus::Running && count == (2, 0, kept + 1) {
                break;
            }
            let left = format!("{status:?} {images:?} {leases:?} {snapshots:?}");
            assert!(std::time::Instant::now() < deadline, "left: {left}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    task.delete_with_kill().await.unwrap();
    container.delete(true).await.unwrap();
    for _ in 0..rounds(LONG_ROUNDS) {
        let restoring = async {
            let container = client.container_builder("r").from_checkpoint(&saved, "r");
            let container = container.create().await.unwrap();
            let task = container.new_task(&Stdio::null()).from_checkpoint(&saved);
            task.create().await.unwrap().start().await.unwrap();
        };
        let after = Duration::from_micros(random.u64(..max));
        let _ = tokio::time::timeout(after, restoring).await;
        let deadline = std::time::Instant::now() + UNDO_MAX;
        while client.snapshots("overlayfs").list(&[]).await.unwrap().len() > kept {
            clean_up(&client, "r").await;
            assert!(std::time::Instant::now() < deadline, "it does not go");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        nothing_left(&client, kept, dir.path()).await;
    }
    for name in [SAVED, BUSYBOX] {
        client.images().delete(name, true).await.unwrap();
    }
}

#[test]
fn root_cancel_checkpoints_on_gantryd() {
    run_on(Daemon::gantryd().path_first(&criu_dir()).start(), cancel_checkpoint_story);
}

on_both!(cancel_images_story, root_cancel_images_on_containerd, root_cancel_images_on_gantryd);
on_both!(cancel_story, root_cancel_on_containerd, root_cancel_on_gantryd);
