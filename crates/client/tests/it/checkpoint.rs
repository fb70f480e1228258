//! Checkpoints as images: what is written, and who restores it.

use std::collections::BTreeSet;

use gantry_client::api::containerd::runc::v1 as runc;
use gantry_client::core::image::Index;
use gantry_client::{
    CRIU_MEDIA_TYPE, CheckpointImageOptions, CheckpointOptions, Client, Container, Image,
    ProcessStatus, Stdio, Task, typeurl,
};
use gantry_testkit::{Daemon, DaemonKind, criu_dir, eventually};

use crate::support::{BUSYBOX, busybox, remove_busybox, run_on};

/// Counts in its memory, and says how far it is in a file: with a word that a process begun anew
/// would not know.
const SCRIPT: &str = "word=$(cat /proc/sys/kernel/random/uuid); i=0; \
    while :; do i=$((i+1)); echo $word $i >/new; mv /new /at; sleep 0.05; done";

/// The name of the checkpoint.
const SAVED: &str = "example.com/saved:1";

/// What the process with `pid` says once it has counted past `number`.
fn past(pid: u32, number: u64) -> (String, u64) {
    let path = format!("/proc/{pid}/root/at");
    eventually(&format!("it counts past {number}"), || {
        let text = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
        let (word, count) = text.trim().split_once(' ').ok_or(text.clone())?;
        let count = count.parse().map_err(|e| format!("{text:?}: {e}"))?;
        if count > number { Ok((word.to_owned(), count)) } else { Err(text) }
    })
}

/// A container that counts, by a runtime with options of its own.
async fn counter(client: &Client, image: &Image) -> (Container, Task) {
    let runtime = runc::Options { no_new_keyring: true, ..Default::default() };
    let container = client
        .container_builder("c")
        .from_image(image)
        .new_snapshot("c")
        .runtime("io.containerd.runc.v2", Some(typeurl::pack(&runtime)))
        .spec_option(|spec| spec.args(["sh", "-c", SCRIPT]))
        .create()
        .await
        .unwrap();
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    past(task.pid(), 3);
    (container, task)
}

async fn index_of(client: &Client, image: &Image) -> Index {
    let digest = &image.target().digest;
    Index::parse(digest, &client.content().read(digest).await.unwrap()).unwrap()
}

/// What Go's client and `ctr` look for.
async fn assert_layout(client: &Client, saved: &Image) {
    assert_eq!(saved.labels()["containerd.io/checkpoint"], "true");
    let index = index_of(client, saved).await;
    let expected = [
        ("image.name", BUSYBOX),
        ("org.opencontainers.image.ref.name", BUSYBOX),
        ("io.containerd.checkpoint.runtime", "io.containerd.runc.v2"),
        ("io.containerd.checkpoint.snapshotter", "overlayfs"),
    ];
    for (key, value) in expected {
        assert_eq!(index.annotations[key], value);
    }
    let kinds: BTreeSet<_> = index.manifests.iter().map(|d| d.media_type.as_str()).collect();
    let expected = [
        CRIU_MEDIA_TYPE,
        "application/vnd.containerd.container.checkpoint.config.v1+proto",
        "application/vnd.containerd.container.checkpoint.options.v1+proto",
        "application/vnd.containerd.container.checkpoint.runtime.options+proto",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.manifest.v1+json",
    ];
    assert_eq!(kinds, expected.into());
    assert!(index.manifests.iter().all(|d| d.platform.is_some()));
    let labels = client.content().info(&saved.target().digest).await.unwrap().labels;
    for part in &index.manifests {
        assert!(labels.values().any(|kept| *kept == part.digest.to_string()), "{part:?}");
    }
}

async fn checkpoint_story(_: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let (container, task) = counter(&client, &image).await;
    let refused = CheckpointOptions { image_path: "/x".into(), ..Default::default() };
    let refused = CheckpointImageOptions { criu: refused, ..Default::default() };
    assert!(task.checkpoint_image(refused).await.unwrap_err().is_invalid_argument());
    let options = CheckpointImageOptions::default().named("example.com/first:1");
    let first = container.checkpoint_image(options.clone()).await.unwrap();
    assert_layout(&client, &first).await;
    // It goes on, and frozen it stays frozen.
    let (word, count) = past(task.pid(), 3);
    past(task.pid(), count);
    task.pause().await.unwrap();
    assert!(container.checkpoint_image(options).await.unwrap_err().is_already_exists());
    assert_eq!(task.state().await.unwrap().status, ProcessStatus::Paused);
    task.resume().await.unwrap();

    // Debian's containerd cannot store the spec of a checkpoint twice.
    client.images().delete(first.name(), true).await.unwrap();
    // A checkpoint of the task has a name of its own, and may end it.
    let saved = task.checkpoint_image(CheckpointImageOptions::default().exit()).await.unwrap();
    assert!(saved.name().starts_with("containerd.io/checkpoint/c:"), "{}", saved.name());
    assert_eq!(task.wait().await.unwrap().code, 137);
    task.delete().await.unwrap();

    // Without processes: a container to begin anew, with what it has written.
    let options = CheckpointImageOptions {
        without_processes: true,
        ..CheckpointImageOptions::default().named("example.com/still:1")
    };
    let still = container.checkpoint_image(options).await.unwrap();
    assert!(still.checkpoint_processes().await.unwrap_err().is_not_found());
    assert!(image.checkpoint_processes().await.unwrap_err().is_invalid_argument());
    let options = container.record().runtime.options.clone();
    container.delete(true).await.unwrap();
    let anew = client.container_builder("s").from_checkpoint(&still, "s").create().await.unwrap();
    let task = anew.new_task(&Stdio::null()).from_checkpoint(&still).create().await;
    assert!(task.unwrap_err().is_not_found());
    let mounts = client.snapshots("overlayfs").mounts("s").await.unwrap();
    let written = |mounts: &[gantry_client::Mount]| {
        let upper = mounts[0].options.iter().find_map(|o| o.strip_prefix("upperdir=")).unwrap();
        std::fs::read_to_string(std::path::Path::new(upper).join("at"))
    };
    assert!(written(&mounts).unwrap().starts_with(&word));
    anew.delete(true).await.unwrap();
    let clean = client.container_builder("s").from_checkpoint(&still, "s").without_changes();
    let clean = clean.create().await.unwrap();
    let mounts = client.snapshots("overlayfs").mounts("s").await.unwrap();
    assert!(written(&mounts).is_err(), "it has what the image has");
    clean.delete(true).await.unwrap();

    // With them: where it was.
    let restored = client.container_builder("r").from_checkpoint(&saved, "r").create();
    let restored = restored.await.unwrap();
    let record = restored.record();
    assert_eq!((record.image.as_str(), record.runtime.options.clone()), (BUSYBOX, options));
    let task = restored.new_task(&Stdio::null()).from_checkpoint(&saved).create().await.unwrap();
    task.start().await.unwrap();
    let pid = task.state().await.unwrap().pid;
    assert_eq!(past(pid, count).0, word, "its memory is what it was");
    task.delete_with_kill().await.unwrap();
    restored.delete(true).await.unwrap();

    for name in [saved.name(), still.name()] {
        client.images().delete(name, true).await.unwrap();
    }
    remove_busybox(&client).await;
    assert!(client.content().list(&[]).await.unwrap().is_empty());
    assert!(client.leases().list(&[]).await.unwrap().is_empty());
}

/// What one client has checkpointed the other restores.
async fn ctr_story(daemon: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let (container, task) = counter(&client, &image).await;
    let options = CheckpointImageOptions::default().named(SAVED);
    let ours = container.checkpoint_image(options).await.unwrap();
    let (word, count) = past(task.pid(), 3);
    let ctr = daemon.ctr();
    let theirs = "example.com/theirs:1";
    ctr.ok(["containers", "checkpoint", "--rw", "--image", "--task", "c", theirs]);
    let theirs = client.image(theirs).await.unwrap();
    task.delete_with_kill().await.unwrap();
    container.delete(true).await.unwrap();

    let restoring = ctr.spawn(["containers", "restore", "--rw", "--live", "r1", ours.name()]);
    let pid = eventually("ctr has restored it", || {
        let listed = ctr.ok(["tasks", "ls"]);
        let row = listed.lines().find(|l| l.starts_with("r1 ") && l.contains("RUNNING"));
        row.and_then(|row| row.split_whitespace().nth(1)?.parse().ok()).ok_or(listed)
    });
    assert_eq!(past(pid, count).0, word);
    ctr.run(["tasks", "delete", "--force", "r1"]);
    restoring.wait();
    ctr.ok(["containers", "delete", "r1"]);

    let restored = client.container_builder("r2").from_checkpoint(&theirs, "r2").create();
    let restored = restored.await.unwrap();
    let task = restored.new_task(&Stdio::null()).from_checkpoint(&theirs).create().await.unwrap();
    task.start().await.unwrap();
    let pid = task.state().await.unwrap().pid;
    assert_eq!(past(pid, count).0, word);
    task.delete_with_kill().await.unwrap();
    restored.delete(true).await.unwrap();
    for name in [ours.name(), theirs.name(), BUSYBOX] {
        client.images().delete(name, true).await.unwrap();
    }
}

fn with_criu(kind: DaemonKind, scenario: impl AsyncFnOnce(&mut Daemon, Client)) {
    let builder = match kind {
        DaemonKind::Gantryd => Daemon::gantryd(),
        DaemonKind::Containerd => Daemon::containerd(),
    };
    run_on(builder.path_first(&criu_dir()).start(), scenario);
}

#[test]
fn root_checkpoint_on_gantryd() {
    with_criu(DaemonKind::Gantryd, checkpoint_story);
}

#[test]
fn root_checkpoint_on_containerd() {
    with_criu(DaemonKind::Containerd, checkpoint_story);
}

// Debian's ctr cannot restore what it has checkpointed on Debian's containerd.
#[test]
fn root_checkpoint_and_ctr_on_gantryd() {
    with_criu(DaemonKind::Gantryd, ctr_story);
}
