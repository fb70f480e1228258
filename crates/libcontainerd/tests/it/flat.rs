//! The flat form, with the names of the first generation.

use std::sync::Arc;

use gantry_libcontainerd::flat::FlatClient;
use gantry_libcontainerd::{
    EventType, INIT_PROCESS, LinuxResources, Options, ProcessStatus, RuntimeConfig,
};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{Recorder, Setting, ignore, names, on_both};

async fn flat_story(setting: &mut Setting) {
    let events = Recorder::default();
    let runtimes =
        RuntimeConfig::default().stock_options("", false).program("own", "/usr/bin/runc");
    let options = Options { runtimes, ..setting.options() };
    let backend = Arc::new(events.clone());
    let client = FlatClient::new(setting.client.clone(), options, backend).await.unwrap();
    assert!(!client.version().await.unwrap().version.is_empty());
    // Every runtime that an engine of that time knows, and one of the user's.
    let names_of_runtimes =
        ["runc", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux", "own"];
    for (n, runtime) in names_of_runtimes.into_iter().enumerate() {
        // Debian's containerd has no shim of the first kind.
        let old = runtime.contains("v1.linux");
        if old && setting.daemon.kind() == gantry_testkit::DaemonKind::Containerd {
            continue;
        }
        let id = format!("c{n}");
        let spec = setting.spec(&id, "sleep 1000").await;
        let image = setting.image.clone();
        client
            .create(&id, &spec, runtime, |b| b.from_image(&image).new_snapshot(&id))
            .await
            .unwrap();
        let taken = client.create(&id, &spec, runtime, |b| b).await;
        assert!(taken.unwrap_err().is_already_exists());
        assert_eq!(client.status(&id).await.unwrap(), ProcessStatus::Unknown);
        let pid = client.start(&id, None, false, ignore).await.unwrap();
        assert_eq!(client.status(&id).await.unwrap(), ProcessStatus::Running);
        assert!(client.list_pids(&id).await.unwrap().contains(&pid));
        assert!(!client.summary(&id).await.unwrap().is_empty());
        client.stats(&id).await.unwrap();
        client.update_resources(&id, &LinuxResources::default()).await.unwrap();
        client.pause(&id).await.unwrap();
        client.resume(&id).await.unwrap();

        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(vec!["sleep".into(), "1000".into()]));
        let exec = format!("e{n}");
        let exec_pid = client.exec(&id, &exec, &process, false, ignore).await.unwrap();
        assert!(exec_pid > 0);
        client.resize_terminal(&id, &exec, 80, 24).await.unwrap();
        client.close_stdin(&id, &exec).await.unwrap();
        client.signal_process(&id, &exec, 9).await.unwrap();
        assert_eq!(events.wait(EventType::Exit, &exec).await.exit_code, 137);
        // Removed without being asked, FIFOs and all.
        let bundle = setting.dir.join(&id);
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        while names(&bundle).iter().any(|f| f.starts_with(&exec)) {
            assert!(std::time::Instant::now() < deadline, "{:?}", names(&bundle));
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }

        assert!(client.delete_task(&id).await.unwrap_err().is_failed_precondition());
        client.signal_process(&id, INIT_PROCESS, 9).await.unwrap();
        assert_eq!(events.wait(EventType::Exit, &id).await.exit_code, 137);
        let (code, at) = client.delete_task(&id).await.unwrap();
        assert!(code == 137 && at > std::time::SystemTime::UNIX_EPOCH);
        client.delete(&id).await.unwrap();
        assert!(client.status(&id).await.unwrap_err().is_not_found());
        assert_eq!(events.count(EventType::Exit, &id), 1);
    }
}

/// What the engine configures of its runtimes arrives at runc.
async fn owner_story(setting: &mut Setting) {
    let events = Recorder::default();
    let root = setting.daemon.dir().join("runc");
    let runtimes = RuntimeConfig::default().stock_options(root.to_str().unwrap(), false);
    let options = Options { runtimes, io_owner: (1234, 1235), ..setting.options() };
    let backend = Arc::new(events.clone());
    let client = FlatClient::new(setting.client.clone(), options, backend).await.unwrap();
    let script = "stat -L -c %u:%g /proc/self/fd/1; sleep 1000";
    let spec = setting.spec("c", script).await;
    let image = setting.image.clone();
    client.create("c", &spec, "runc", |b| b.from_image(&image).new_snapshot("c")).await.unwrap();
    let (give, take) = tokio::sync::oneshot::channel();
    let attach = |io: gantry_libcontainerd::DirectIo| {
        give.send(io).unwrap();
        Ok(())
    };
    client.start("c", None, false, attach).await.unwrap();
    let state = root.join(setting.client.namespace()).join("c");
    assert!(state.join("state.json").is_file(), "{}", state.display());
    // runc gives streams to the container's own user, and leaves the group.
    let mut line = String::new();
    let mut output = BufReader::new(take.await.unwrap().stdout.unwrap());
    let read = output.read_line(&mut line);
    tokio::time::timeout(crate::support::PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(line, "0:1235\n");
    client.signal_process("c", INIT_PROCESS, 9).await.unwrap();
    events.wait(EventType::Exit, "c").await;
    client.delete_task("c").await.unwrap();
    assert!(!state.exists());
    client.delete("c").await.unwrap();
}

/// An engine that is killed: another takes its containers up.
async fn restore_story(setting: &mut Setting) {
    let first = Recorder::default();
    let backend = Arc::new(first.clone());
    let client = FlatClient::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    let mut pids = Vec::new();
    for (id, script) in [("lives", "sleep 1000"), ("ends", "exit 7")] {
        let spec = setting.spec(id, script).await;
        let image = setting.image.clone();
        client.create(id, &spec, "runc", |b| b.from_image(&image).new_snapshot(id)).await.unwrap();
        pids.push(client.start(id, None, false, ignore).await.unwrap());
    }
    first.wait(EventType::Exit, "ends").await;
    drop(client);

    let second = Recorder::default();
    let backend = Arc::new(second.clone());
    let client = FlatClient::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    let restored = client.restore("lives", ignore).await.unwrap();
    assert!(restored.alive && restored.pid == pids[0], "{restored:?}");
    let restored = client.restore("ends", ignore).await.unwrap();
    assert!(!restored.alive, "{restored:?}");
    assert!(client.restore("never", ignore).await.unwrap_err().is_not_found());
    assert_eq!(client.delete_task("ends").await.unwrap().0, 7);
    client.signal_process("lives", INIT_PROCESS, 9).await.unwrap();
    assert_eq!(second.wait(EventType::Exit, "lives").await.exit_code, 137);
    client.delete_task("lives").await.unwrap();
    assert!(!client.restore("lives", ignore).await.unwrap().alive);
    client.delete("lives").await.unwrap();
    client.delete("ends").await.unwrap();
    assert_eq!(second.told("lives"), ["exit"]);
}

on_both!(owner_story, root_owner_on_containerd, root_owner_on_gantryd);
on_both!(flat_story, root_flat_on_containerd, root_flat_on_gantryd);
on_both!(restore_story, root_restore_on_containerd, root_restore_on_gantryd);
