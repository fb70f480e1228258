//! Containers, tasks, execs, input and output, events.

use std::time::Duration;

use gantry_client::oci::SpecBuilder;
use gantry_client::{Client, Container, FifoSet, KillOptions, ProcessStatus, Stdio};
use gantry_testkit::{Daemon, DaemonKind, Image};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{load, with_daemon};

/// Longest wait for an event or a line.
const PATIENCE: Duration = Duration::from_secs(20);

async fn container(client: &Client, id: &str, args: &[&str]) -> Container {
    let image = match client.resolve_image("example.com/b:1", None).await {
        Ok(image) => image,
        Err(_) => load(client, &Image::busybox(), "example.com/b:1").await,
    };
    let spec = SpecBuilder::new(client.namespace(), id)
        .image_config(&image.config.config)
        .args(args.iter().copied())
        .build()
        .unwrap();
    client
        .container_builder(id)
        .from_image(&client.image("example.com/b:1").await.unwrap())
        .new_snapshot(id)
        .label("a", "b")
        .spec(&spec)
        .unwrap()
        .create()
        .await
        .unwrap()
}

async fn run_story(_: &mut Daemon, client: Client) {
    let container = container(&client, "c1", &["sh", "-c", "cat; echo oops >&2; exit 7"]).await;
    assert_eq!(container.record().labels["a"], "b");
    let mut events = client
        .events()
        .subscribe(&[format!("namespace=={},topic~=|^/tasks/|", client.namespace())])
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fifos = FifoSet::create(Some(dir.path()), "c1", true, false).unwrap();
    let mut streams = fifos.stdio().open().unwrap();
    let task = container.new_task(fifos.stdio()).create().await.unwrap();
    assert!(task.pid() > 0);
    assert_eq!(task.state().await.unwrap().status, ProcessStatus::Created);
    task.start().await.unwrap();
    assert!(container.delete(true).await.unwrap_err().is_failed_precondition());

    let mut stdin = streams.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    drop(stdin);
    task.close_stdin().await.unwrap();
    let exit = task.wait().await.unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(task.wait().await.unwrap(), exit);
    let (mut out, mut err) = (String::new(), String::new());
    streams.stdout.unwrap().read_to_string(&mut out).await.unwrap();
    streams.stderr.unwrap().read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("hello\n", "oops\n"));
    let state = task.state().await.unwrap();
    assert_eq!((state.status, state.exit.map(|e| e.code)), (ProcessStatus::Stopped, Some(7)));
    assert_eq!(task.delete().await.unwrap().code, 7);
    assert!(task.delete().await.unwrap_err().is_not_found());
    container.delete(true).await.unwrap();
    drop(fifos);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let mut topics = Vec::new();
    while topics.last().map(String::as_str) != Some("/tasks/delete") {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap();
        if event.topic == "/tasks/exit" {
            assert_eq!(event.payload_json()["exit_status"], 7);
        }
        topics.push(event.topic);
    }
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    client.images().delete("example.com/b:1", true).await.unwrap();
}

async fn exec_story(_: &mut Daemon, client: Client) {
    let container = container(&client, "c1", &["sleep", "1000"]).await;
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    let mut process = container.spec().unwrap().process().clone().unwrap();
    process.set_args(Some(vec!["sh".into(), "-c".into(), "echo $PPID; exit 3".into()]));
    let dir = tempfile::tempdir().unwrap();
    let fifos = FifoSet::create(Some(dir.path()), "e1", false, false).unwrap();
    let streams = fifos.stdio().open().unwrap();
    let exec = task.exec("e1", &process, fifos.stdio()).await.unwrap();
    exec.start().await.unwrap();
    assert_eq!(exec.wait().await.unwrap().code, 3);
    let mut out = String::new();
    streams.stdout.unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "0\n");
    assert_eq!(exec.delete().await.unwrap().code, 3);

    assert!(task.pids().await.unwrap().iter().any(|p| p.pid == task.pid()));
    task.pause().await.unwrap();
    assert_eq!(task.state().await.unwrap().status, ProcessStatus::Paused);
    task.resume().await.unwrap();
    let metrics = task.metrics().await.unwrap();
    assert_eq!(metrics.id, "c1");
    assert_eq!(client.tasks().list().await.unwrap().len(), 1);

    let waiters = [task.clone(), task.clone()].map(|t| tokio::spawn(async move { t.wait().await }));
    task.kill(15, KillOptions::default()).await.unwrap();
    task.kill(9, KillOptions { all: true }).await.unwrap();
    for waiter in waiters {
        let code = waiter.await.unwrap().unwrap().code;
        assert!(code == 137 || code == 143, "{code}");
    }
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    client.images().delete("example.com/b:1", true).await.unwrap();
}

#[test]
fn root_run_on_containerd() {
    with_daemon(DaemonKind::Containerd, run_story);
}

#[test]
fn root_run_on_gantryd() {
    with_daemon(DaemonKind::Gantryd, run_story);
}

#[test]
fn root_exec_on_containerd() {
    with_daemon(DaemonKind::Containerd, exec_story);
}

#[test]
fn root_exec_on_gantryd() {
    with_daemon(DaemonKind::Gantryd, exec_story);
}
