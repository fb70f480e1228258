//! Calls that are dropped half way leave no task, process or FIFO behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_libcontainerd::Client;
use gantry_testkit::seed;

use crate::support::{PATIENCE, Recorder, Setting, ignore, names, on_both};

/// Times each call is dropped.
const ROUNDS: usize = 6;

/// Longest a call may run before it is dropped, in microseconds: the length of a task's making.
const DROP_AFTER_US_MAX: u64 = 150_000;

async fn cancel_story(setting: &mut Setting) {
    let mut random = fastrand::Rng::with_seed(seed());
    let events = Recorder::default();
    let backend = Arc::new(events.clone());
    let client = Client::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    let spec = setting.spec("c", "sleep 1000").await;
    let image = setting.image.clone();
    let container = client
        .new_container("c", &spec, "runc", |b| b.from_image(&image).new_snapshot("c"))
        .await
        .unwrap();
    for _ in 0..ROUNDS {
        let after = Duration::from_micros(random.u64(..DROP_AFTER_US_MAX));
        let making = container.new_task(true, None, ignore);
        if let Ok(made) = tokio::time::timeout(after, making).await {
            made.unwrap().force_delete().await.unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let none = container.task().await.is_err_and(|e| e.is_not_found());
            let files = names(container.bundle());
            if none && files.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "a task: {}, {files:?}", !none);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let task = container.new_task(false, None, ignore).await.unwrap();
    task.start().await.unwrap();
    let own = names(container.bundle());
    let mut process = spec.process().clone().unwrap();
    process.set_args(Some(vec!["sleep".into(), "1000".into()]));
    for n in 0..ROUNDS {
        let name = format!("e{n}");
        let after = Duration::from_micros(random.u64(..DROP_AFTER_US_MAX / 2));
        let adding = task.exec(&name, &process, true, ignore);
        if let Ok(added) = tokio::time::timeout(after, adding).await {
            let added = added.unwrap();
            added.kill(9).await.unwrap();
            events.wait(gantry_libcontainerd::EventType::Exit, &name).await;
            let _ = added.delete().await;
        }
        let deadline = Instant::now() + PATIENCE;
        let inner = container.record().task().await.unwrap();
        loop {
            let none = inner.load_process(&name).await.is_err_and(|e| e.is_not_found());
            let files = names(container.bundle());
            if none && files == own {
                break;
            }
            assert!(Instant::now() < deadline, "a process: {}, {files:?}", !none);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    task.force_delete().await.unwrap();
    container.delete().await.unwrap();
}

on_both!(cancel_story, root_cancel_on_containerd, root_cancel_on_gantryd);
