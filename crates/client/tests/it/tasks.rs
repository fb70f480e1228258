//! Processes: where their streams go, and the rules of their lives.

use gantry_client::oci::LinuxResources;
use gantry_client::oci::runtime::LinuxPidsBuilder;
use gantry_client::{
    CheckpointImageOptions, Client, FifoSet, KillOptions, ProcessStatus, Stdio, TaskMetrics,
};
use gantry_testkit::{Daemon, DaemonKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{busybox, on_both, remove_busybox, shell};

async fn streams_story(daemon: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let dir = tempfile::tempdir().unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    // To files.
    let container = shell(&client, &image, "files", "echo out; echo err >&2").await;
    let task = container.new_task(&Stdio::files(&out, &err)).create().await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    match daemon.kind() {
        DaemonKind::Gantryd => {
            assert_eq!((read(&out), read(&err)), ("out\n".into(), "err\n".into()))
        }
        // Shims before 2.0 write both into the first file, at times one over the other.
        DaemonKind::Containerd => assert!(["out", "err"].iter().any(|l| read(&out).contains(l))),
    }

    // To a logging program, which reads descriptor 3.
    let script = dir.path().join("logger");
    let log = dir.path().join("log");
    std::fs::write(&script, format!("#!/bin/sh\nexec 5>&-\ncat <&3 >{}\n", log.display())).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let container = shell(&client, &image, "logged", "echo to the log").await;
    let stdio = Stdio::binary(&script, &[("id", "logged")]);
    let task = container.new_task(&stdio).create().await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    gantry_testkit::eventually("the log is written", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text == "to the log\n" { Ok(()) } else { Err(text) }
    });

    // A terminal.
    let container = client
        .container_builder("tty")
        .from_image(&image)
        .new_snapshot("tty")
        .spec_option(|spec| spec.args(["sh", "-c", "read x; stty size; exit 4"]).terminal())
        .create()
        .await
        .unwrap();
    let fifos = FifoSet::create(Some(dir.path()), "tty", true, true).unwrap();
    let mut streams = fifos.stdio().open().unwrap();
    let task = container.new_task(fifos.stdio()).create().await.unwrap();
    task.start().await.unwrap();
    task.resize(101, 37).await.unwrap();
    streams.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 4);
    let output = streams.output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("37 101"), "{output:?}");
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    remove_busybox(&client).await;
}

async fn attach_story(daemon: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let container = shell(&client, &image, "c1", "cat; echo end").await;
    let dir = tempfile::tempdir().unwrap();
    let fifos = FifoSet::create(Some(dir.path()), "c1", true, false).unwrap();
    let mut first = fifos.stdio().open().unwrap();
    let task = container.new_task(fifos.stdio()).create().await.unwrap();
    task.start().await.unwrap();
    let mut bytes = [0; 4];
    first.stdin.as_mut().unwrap().write_all(b"one\n").await.unwrap();
    first.stdout.as_mut().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"one\n");
    let stdio = fifos.keep();
    drop(first);

    // Another client, and another daemon process, take the same streams up.
    daemon.restart();
    let other = Client::builder(daemon.address()).namespace(daemon.namespace()).build().unwrap();
    let task = other.container("c1").await.unwrap().task().await.unwrap();
    assert_eq!(task.state().await.unwrap().stdio, stdio);
    let mut second = task.attach().await.unwrap();
    second.stdin.as_mut().unwrap().write_all(b"two\n").await.unwrap();
    second.stdout.as_mut().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"two\n");
    drop(second.stdin.take());
    task.close_stdin().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 0);
    assert_eq!(second.output().await.unwrap().stdout, b"end\n");
    task.delete().await.unwrap();
    stdio.remove_fifos();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    client.container("c1").await.unwrap().delete(true).await.unwrap();
    remove_busybox(&client).await;
}

async fn rules_story(_: &mut Daemon, client: Client) {
    let image = busybox(&client).await;
    let container = shell(&client, &image, "c1", "trap 'exit 9' TERM; sleep 1000 & wait").await;
    assert!(container.task().await.unwrap_err().is_not_found());
    let task = container.new_task(&Stdio::null()).no_pivot_root().create().await.unwrap();
    // Neither made nor running tasks can be deleted, and a second one can't be made.
    assert!(task.delete().await.unwrap_err().is_failed_precondition());
    let second = container.new_task(&Stdio::null()).create().await;
    assert!(second.unwrap_err().is_already_exists());
    task.start().await.unwrap();
    assert!(task.delete().await.unwrap_err().is_failed_precondition());
    assert_eq!(task.state().await.unwrap().status, ProcessStatus::Running);
    assert!(task.resume().await.is_err(), "it is not frozen");
    // Without a terminal there is no size to set, and that is no error.
    task.resize(10, 10).await.unwrap();
    let mut limits = LinuxResources::default();
    limits.set_pids(Some(LinuxPidsBuilder::default().limit(77).build().unwrap()));
    task.update(&limits).await.unwrap();
    match task.metrics().await.unwrap().data {
        TaskMetrics::V1(v1) => assert_eq!(v1.pids.unwrap().limit, 77),
        TaskMetrics::V2(v2) => assert_eq!(v2.pids.unwrap().limit, 77),
        TaskMetrics::Other(other) => panic!("{other:?}"),
    }

    let mut process = container.spec().unwrap().process().clone().unwrap();
    process.set_args(Some(vec!["sleep".into(), "1000".into()]));
    let dir = tempfile::tempdir().unwrap();
    let fifos = FifoSet::create(Some(dir.path()), "e1", false, false).unwrap();
    let held = fifos.stdio().open().unwrap();
    let exec = task.exec("e1", &process, fifos.stdio()).await.unwrap();
    let again = task.exec("e1", &process, &Stdio::null()).await;
    assert!(again.unwrap_err().is_already_exists());
    assert!(task.exec("no/id", &process, &Stdio::null()).await.unwrap_err().is_invalid_argument());
    exec.start().await.unwrap();
    drop(held);
    let loaded = task.load_process("e1").await.unwrap();
    assert!(task.load_process("e2").await.unwrap_err().is_not_found());
    let pids = task.pids().await.unwrap();
    assert!(pids.iter().any(|p| p.exec_id == "e1"), "{pids:?}");
    loaded.kill(9, KillOptions::default()).await.unwrap();
    assert_eq!(exec.wait().await.unwrap().code, 137);
    // Attaching too late gives the end, and does not hang.
    assert_eq!(exec.attach().await.unwrap().output().await.unwrap().stdout, b"");
    assert!(exec.kill(9, KillOptions::default()).await.unwrap_err().is_not_found());
    assert_eq!(exec.delete().await.unwrap().code, 137);
    // A second one of its name, once it is gone.
    let exec = task.exec("e1", &process, &Stdio::null()).await.unwrap();
    exec.delete().await.unwrap();
    // One that never ran may go too.
    task.exec("e3", &process, &Stdio::null()).await.unwrap().delete().await.unwrap();

    // Without criu, or with it: an image is no partial one.
    if task.checkpoint_image(CheckpointImageOptions::default()).await.is_err() {
        assert_eq!(client.list_images(&[]).await.unwrap().len(), 1);
        assert_eq!(task.state().await.unwrap().status, ProcessStatus::Running);
    }
    for image in client.list_images(&[]).await.unwrap() {
        if image.name().contains("checkpoint") {
            client.images().delete(image.name(), true).await.unwrap();
        }
    }

    let late = task.exec("e4", &process, &Stdio::null()).await.unwrap();
    task.kill(15, KillOptions::default()).await.unwrap();
    let exit = task.wait().await.unwrap();
    assert_eq!(exit.code, 9);
    assert!(exit.exited_at > std::time::SystemTime::UNIX_EPOCH);
    assert!(late.start().await.is_err(), "the container has ended");
    late.delete_with_kill().await.unwrap();
    // A process that is over still tells, to whoever asks.
    assert_eq!(container.task().await.unwrap().wait().await.unwrap(), exit);
    assert_eq!(task.delete().await.unwrap().code, 9);
    assert!(task.delete().await.unwrap_err().is_not_found());
    assert!(task.wait().await.unwrap_err().is_not_found());

    // A program that is not there: nothing is left of the task.
    let wrong = shell(&client, &image, "c2", "").await;
    let mut spec = wrong.spec().unwrap();
    spec.process_mut().as_mut().unwrap().set_args(Some(vec!["/no/such".into()]));
    let mut wrong = wrong;
    wrong.update().spec(&spec).apply().await.unwrap();
    let failed = match wrong.new_task(&Stdio::null()).create().await {
        Ok(task) => {
            let failed = task.start().await.unwrap_err();
            task.delete_with_kill().await.unwrap();
            failed
        }
        Err(e) => e,
    };
    assert!(failed.text().contains("no such file"), "{failed:?}");
    assert!(wrong.task().await.unwrap_err().is_not_found());
    // Killing what runs on the way.
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.delete_with_kill().await.unwrap();
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.delete_with_kill().await.unwrap().code, 137);
    container.delete(true).await.unwrap();
    wrong.delete(true).await.unwrap();
    remove_busybox(&client).await;
}

on_both!(streams_story, root_streams_on_containerd, root_streams_on_gantryd);
on_both!(attach_story, root_attach_on_containerd, root_attach_on_gantryd);
on_both!(rules_story, root_rules_on_containerd, root_rules_on_gantryd);
