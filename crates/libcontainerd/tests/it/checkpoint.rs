//! Checkpoints in directories: an engine's own, restored by either form.

use std::path::Path;
use std::sync::Arc;

use gantry_libcontainerd::EventType;
use gantry_libcontainerd::flat::FlatClient;
use gantry_testkit::{Daemon, criu_dir, eventually};

use crate::support::{Recorder, Setting, ignore, run_on};

/// Counts in its memory, and says how far it is in a file: with a word that a process begun anew
/// would not know.
const SCRIPT: &str = "word=$(cat /proc/sys/kernel/random/uuid); i=0; \
    while :; do i=$((i+1)); echo $word $i >/new; mv /new /at; sleep 0.05; done";

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

async fn checkpoint_story(setting: &mut Setting) {
    let events = Recorder::default();
    let backend = Arc::new(events.clone());
    let client = FlatClient::new(setting.client.clone(), setting.options(), backend).await.unwrap();
    let spec = setting.spec("c", SCRIPT).await;
    let image = setting.image.clone();
    client.create("c", &spec, "runc", |b| b.from_image(&image).new_snapshot("c")).await.unwrap();
    let pid = client.start("c", None, false, ignore).await.unwrap();
    let (word, _) = past(pid, 3);
    let dir = tempfile::tempdir().unwrap();
    let saved = |name: &str| dir.path().join(name);
    for name in ["running", "ended"] {
        std::fs::create_dir(saved(name)).unwrap();
    }
    client.create_checkpoint("c", &saved("running"), false).await.unwrap();
    let (_, count) = past(pid, past(pid, 0).1);
    client.create_checkpoint("c", &saved("ended"), true).await.unwrap();
    assert_eq!(events.wait(EventType::Exit, "c").await.exit_code, 137);
    client.delete_task("c").await.unwrap();

    let saved = saved("ended");
    let pid = client.start("c", Some(Path::new(&saved)), false, ignore).await.unwrap();
    assert_eq!(past(pid, count).0, word, "its memory is what it was");
    let missing = dir.path().join("none");
    assert!(client.create_checkpoint("d", &missing, false).await.unwrap_err().is_not_found());
    client.signal_process("c", gantry_libcontainerd::INIT_PROCESS, 9).await.unwrap();
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while events.count(EventType::Exit, "c") < 2 {
        assert!(std::time::Instant::now() < deadline, "{:?}", events.told("c"));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    client.delete_task("c").await.unwrap();
    client.delete("c").await.unwrap();
}

#[test]
fn root_checkpoint_on_gantryd() {
    run_on(Daemon::gantryd().path_first(&criu_dir()).start(), checkpoint_story);
}

#[test]
fn root_checkpoint_on_containerd() {
    run_on(Daemon::containerd().path_first(&criu_dir()).start(), checkpoint_story);
}
