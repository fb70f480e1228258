//! Daemons that are killed: nothing is lost, and nothing is told twice.

use std::sync::Arc;

use gantry_libcontainerd::{Client, EventType};

use crate::support::{Recorder, Setting, ignore, on_both};

async fn restart_story(setting: &mut Setting) {
    let events = Recorder::default();
    let backend = Arc::new(events.clone());
    let client = Client::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    let mut containers = Vec::new();
    // One that lives on, one that ends while the daemon is away, one after.
    for (id, script) in [("lives", "sleep 1000"), ("away", "sleep 2; exit 5"), ("after", "cat")] {
        let spec = setting.spec(id, script).await;
        let image = setting.image.clone();
        let container = client
            .new_container(id, &spec, "runc", |b| b.from_image(&image).new_snapshot(id))
            .await
            .unwrap();
        let task = container.new_task(id == "after", None, ignore_but_keep).await.unwrap();
        task.start().await.unwrap();
        containers.push((container, task));
    }
    let mut process = containers[0].0.record().spec().unwrap().process().clone().unwrap();
    process.set_args(Some(vec!["sh".into(), "-c".into(), "sleep 2; exit 8".into()]));
    containers[0].1.exec("e", &process, false, ignore).await.unwrap();
    events.wait(EventType::Start, "away").await;
    events.wait(EventType::Start, "after").await;
    events.wait(EventType::ExecStarted, "e").await;

    let away = containers[1].1.pid();
    setting.daemon.kill9();
    gantry_testkit::eventually(
        "the process ends without a daemon",
        || match std::fs::read_to_string(format!("/proc/{away}/stat")) {
            Ok(stat) if !stat.contains(") Z") => Err(stat),
            _ => Ok(()),
        },
    );
    setting.daemon.start_again();
    let info = events.wait(EventType::Exit, "away").await;
    assert_eq!((info.exit_code, info.pid), (5, away), "{info:?}");
    assert_eq!(events.wait(EventType::Exit, "e").await.exit_code, 8);
    containers[2].1.kill(9).await.unwrap();
    assert_eq!(events.wait(EventType::Exit, "after").await.exit_code, 137);

    // Again, with nothing to tell, and in good order.
    tokio::task::block_in_place(|| setting.daemon.restart());
    setting.client.wait_until_serving(crate::support::PATIENCE).await.unwrap();
    containers[0].1.kill(9).await.unwrap();
    assert_eq!(events.wait(EventType::Exit, "lives").await.exit_code, 137);
    for (container, task) in containers {
        task.delete().await.unwrap();
        container.delete().await.unwrap();
    }
    assert_eq!(events.told("away"), ["create", "start", "exit"]);
    assert_eq!(events.told("after"), ["create", "start", "exit"]);
    let expected = ["create", "start", "exec-added e", "exec-started e", "exit e", "exit"];
    assert_eq!(events.told("lives"), expected);
}

/// The input stays open: dropping it would end the process.
fn ignore_but_keep(io: gantry_libcontainerd::DirectIo) -> gantry_libcontainerd::Result<()> {
    std::mem::forget(io);
    Ok(())
}

on_both!(restart_story, root_restart_on_containerd, root_restart_on_gantryd);
