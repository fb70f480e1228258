//! The objects: containers, tasks, processes, and what the engine is told of them.

use std::sync::Arc;

use gantry_client::oci::runtime::LinuxPidsBuilder;
use gantry_libcontainerd::{
    BUNDLE_LABEL, Client, DirectIo, EventType, LinuxResources, ProcessStatus, TaskMetrics,
};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use crate::support::{BUSYBOX, Recorder, Setting, ignore, names, on_both, output};

async fn life_story(setting: &mut Setting) {
    let events = Recorder::default();
    let backend = Arc::new(events.clone());
    let client = Client::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    assert!(!client.version().await.unwrap().version.is_empty());
    assert!(client.load_container("c").await.unwrap_err().is_not_found());

    let spec = setting.spec("c", "cat; exit 3").await;
    let image = setting.image.clone();
    let with_root = |builder: gantry_libcontainerd::ContainerBuilder| {
        builder.from_image(&image).new_snapshot("c")
    };
    let container = client.new_container("c", &spec, "runc", with_root).await.unwrap();
    assert_eq!(container.record().record().image, BUSYBOX);
    assert_eq!(container.bundle(), setting.dir.join("c"));
    let label = &container.record().record().labels[BUNDLE_LABEL];
    assert_eq!(label, setting.dir.join("c").to_str().unwrap());
    let taken = client.new_container("c", &spec, "", |b| b).await;
    assert!(taken.unwrap_err().is_already_exists());
    let unknown = client.new_container("d", &spec, "nothing", |b| b).await;
    assert!(unknown.unwrap_err().is_invalid_argument());
    assert!(container.task().await.unwrap_err().is_not_found());

    // Made, and not running before it is started: the time for the network.
    let (give, take) = oneshot::channel();
    let attach = |io: DirectIo| {
        give.send(io).unwrap();
        Ok(())
    };
    let task = container.new_task(true, None, attach).await.unwrap();
    let mut io = take.await.unwrap();
    assert_eq!(names(container.bundle()), ["init-stderr", "init-stdin", "init-stdout"]);
    assert!(task.pid() > 0);
    assert_eq!(task.status().await.unwrap(), ProcessStatus::Created);
    assert_eq!(task.start().await.unwrap(), task.pid());
    assert_eq!(task.status().await.unwrap(), ProcessStatus::Running);
    assert!(container.delete().await.unwrap_err().is_failed_precondition());
    assert!(task.pids().await.unwrap().contains(&task.pid()));
    assert!(task.summary().await.unwrap().iter().any(|p| p.pid == task.pid()));

    let mut limits = LinuxResources::default();
    limits.set_pids(Some(LinuxPidsBuilder::default().limit(88).build().unwrap()));
    task.update_resources(&limits).await.unwrap();
    match task.stats().await.unwrap().metrics {
        TaskMetrics::V1(v1) => assert_eq!(v1.pids.unwrap().limit, 88),
        TaskMetrics::V2(v2) => assert_eq!(v2.pids.unwrap().limit, 88),
        TaskMetrics::Other(other) => panic!("{other:?}"),
    }
    task.pause().await.unwrap();
    assert_eq!(task.status().await.unwrap(), ProcessStatus::Paused);
    task.resume().await.unwrap();

    // An exec, whose exit is told apart.
    let mut process = spec.process().clone().unwrap();
    process.set_args(Some(vec!["sh".into(), "-c".into(), "echo from the exec; exit 6".into()]));
    let (give, take) = oneshot::channel();
    let attach = |io: DirectIo| {
        give.send(io).unwrap();
        Ok(())
    };
    let exec = task.exec("e", &process, false, attach).await.unwrap();
    assert!(exec.pid() > 0 && exec.id() == "e");
    assert_eq!(output(take.await.unwrap()).await, "from the exec\n");
    let info = events.wait(EventType::Exit, "e").await;
    assert_eq!((info.exit_code, info.pid), (6, exec.pid()));
    assert_eq!(exec.delete().await.unwrap().code, 6);
    process.set_args(Some(vec!["/no/such".into()]));
    assert!(task.exec("f", &process, false, ignore).await.is_err());

    // Dropping the input ends it.
    io.stdin.as_mut().unwrap().write_all(b"to and fro\n").await.unwrap();
    drop(io.stdin.take());
    assert_eq!(output(io).await, "to and fro\n");
    let info = events.wait(EventType::Exit, "c").await;
    assert_eq!((info.exit_code, info.pid, info.oom_killed), (3, task.pid(), false));
    assert!(info.exited_at.is_some() && info.error.is_none());
    assert_eq!(task.wait().await.unwrap().code, 3);
    assert_eq!(task.delete().await.unwrap().code, 3);
    container.delete().await.unwrap();
    let told: Vec<_> = events.told("c").into_iter().filter(|t| !t.contains(" f")).collect();
    assert_eq!(
        told,
        [
            "create",
            "start",
            "paused",
            "resumed",
            "exec-added e",
            "exec-started e",
            "exit e",
            "exit"
        ]
    );
}

async fn stale_story(setting: &mut Setting) {
    let events = Recorder::default();
    let backend = Arc::new(events.clone());
    let client = Client::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    let spec = setting.spec("c", "sleep 1000").await;
    let image = setting.image.clone();
    let with_root = |builder: gantry_libcontainerd::ContainerBuilder| {
        builder.from_image(&image).new_snapshot("c")
    };
    let stale = client.new_container("c", &spec, "runc", with_root).await.unwrap();
    let task = stale.new_task(false, None, ignore).await.unwrap();
    task.start().await.unwrap();
    // The container of an engine that crashed stands in the way of a new one.
    let fresh = client.replace_container("c", &spec, "", with_root).await.unwrap();
    assert!(fresh.task().await.unwrap_err().is_not_found());
    assert_eq!(events.wait(EventType::Exit, "c").await.exit_code, 137);
    // Refused by the engine: nothing is left of the task.
    let refuse = |_| Err(gantry_libcontainerd::Error::canceled("no"));
    assert!(fresh.new_task(false, None, refuse).await.unwrap_err().is_canceled());
    assert!(names(fresh.bundle()).is_empty());
    // Input that ends before there is a process.
    let task = fresh.new_task(true, None, ignore).await.unwrap();
    task.force_delete().await.unwrap();
    fresh.delete().await.unwrap();
}

async fn memory_story(setting: &mut Setting) {
    let events = Recorder::default();
    let backend = Arc::new(events.clone());
    let client = Client::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    let spec =
        setting.builder("c", "exec tail /dev/zero").await.memory_limit(12 << 20).build().unwrap();
    let image = setting.image.clone();
    let container = client
        .new_container("c", &spec, "runc", |b| b.from_image(&image).new_snapshot("c"))
        .await
        .unwrap();
    let task = container.new_task(false, None, ignore).await.unwrap();
    task.start().await.unwrap();
    let info = events.wait(EventType::Exit, "c").await;
    assert_eq!((info.exit_code, info.oom_killed), (137, true));
    let told = events.told("c");
    let at = |what: &str| told.iter().position(|t| t == what);
    assert!(at("oom").unwrap() < at("exit").unwrap(), "{told:?}");
    task.delete().await.unwrap();
    container.delete().await.unwrap();
}

/// An engine that comes after another takes up the task and its streams.
async fn attach_story(setting: &mut Setting) {
    let first = Recorder::default();
    let client = Client::new(setting.client.clone(), setting.options(), Arc::new(first.clone()));
    let client = client.await.unwrap();
    let spec = setting.spec("c", "cat; exit 3").await;
    let image = setting.image.clone();
    let container = client
        .new_container("c", &spec, "runc", |b| b.from_image(&image).new_snapshot("c"))
        .await
        .unwrap();
    assert!(container.attach_task(ignore).await.unwrap_err().is_not_found());
    let (give, take) = oneshot::channel();
    let attach = |io: DirectIo| {
        give.send(io).unwrap();
        Ok(())
    };
    container.new_task(true, None, attach).await.unwrap().start().await.unwrap();
    // As of an engine that was killed: its input is not ended.
    let mut held = take.await.unwrap();
    drop((held.stdout.take(), held.stderr.take()));

    let second = Recorder::default();
    let client = Client::new(setting.client.clone(), setting.options(), Arc::new(second.clone()));
    let container = client.await.unwrap().load_container("c").await.unwrap();
    assert_eq!(container.bundle(), setting.dir.join("c"));
    let (give, take) = oneshot::channel();
    let attach = |io: DirectIo| {
        give.send(io).unwrap();
        Ok(())
    };
    let task = container.attach_task(attach).await.unwrap();
    assert_eq!(container.task().await.unwrap().pid(), task.pid());
    let mut io = take.await.unwrap();
    task.resize(80, 24).await.unwrap();
    io.stdin.as_mut().unwrap().write_all(b"taken up\n").await.unwrap();
    // The end of the input is that of all who hold it.
    drop((io.stdin.take(), held));
    assert_eq!(output(io).await, "taken up\n");
    assert_eq!(second.wait(EventType::Exit, "c").await.exit_code, 3);
    assert_eq!(task.delete().await.unwrap().code, 3);
    container.delete().await.unwrap();
}

on_both!(attach_story, root_attach_on_containerd, root_attach_on_gantryd);
on_both!(life_story, root_life_on_containerd, root_life_on_gantryd);
on_both!(stale_story, root_stale_on_containerd, root_stale_on_gantryd);
on_both!(memory_story, root_memory_on_containerd, root_memory_on_gantryd);
