//! Whole lives of tasks, each under Debian's shim and under ours.

use std::collections::HashMap;
use std::future::Future as _;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::containerd::events::{TaskDelete, TaskExit};
use gantry_core::Any;
use gantry_runtime::plugin::Runtime as _;
use gantry_runtime::{ExecOptions, Status};
use prost::Message as _;

use crate::fixture::{Fixture, PATIENCE, Shim, until};

const SIGKILL: u32 = 9;

fn exit_of(event: &gantry_events::Envelope) -> TaskExit {
    TaskExit::decode(event.event.value.as_slice()).expect("an exit")
}

async fn a_task_runs_and_is_deleted(shim: Shim) {
    let (f, manager) = Fixture::new(shim);
    let mut events = f.subscribe();
    let task = f.create(&manager, "c1", "echo hello; exit 3").await.expect("created");
    assert_eq!(task.state("").await.expect("a state").status, Status::Created);
    let pid = task.pid().await.expect("a pid");
    assert_eq!(task.start("").await.expect("started"), pid);
    let exit = tokio::time::timeout(PATIENCE, task.wait("")).await.expect("in time");
    assert_eq!(exit.expect("an exit").status, 3);
    let state = task.state("").await.expect("a state");
    assert_eq!((state.status, state.exit_status), (Status::Stopped, 3));
    assert!(state.exited_at.is_some());
    let exit = manager.delete(&f.namespace, "c1").await.expect("deleted");
    assert_eq!((exit.status, exit.pid), (3, pid));
    for topic in ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"] {
        until(&mut events, topic).await;
    }
    let out = std::fs::read_to_string(f.path("out")).expect("output");
    assert_eq!(out, "hello\n");
    assert!(manager.get(&f.namespace, "c1").await.err().expect("gone").is_not_found());
    f.assert_clean("c1");
}

async fn exec_pause_pids_stats_and_kill(shim: Shim) {
    let (f, manager) = Fixture::new(shim);
    let task = f.create(&manager, "c2", "while :; do busybox sleep 1; done").await.expect("made");
    task.start("").await.expect("started");

    let process = serde_json::json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "args": ["/bin/sh", "-c", "exit 7"],
    });
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: process.to_string().into_bytes(),
    };
    let options = ExecOptions { spec: Some(spec), ..ExecOptions::default() };
    task.exec("e1", options.clone()).await.expect("registered");
    let again = task.exec("e1", options).await.expect_err("taken");
    assert!(again.is_already_exists(), "{again}");
    assert!(task.start("e1").await.expect("started") > 0);
    let exit = tokio::time::timeout(PATIENCE, task.wait("e1")).await.expect("in time");
    assert_eq!(exit.expect("an exit").status, 7);
    assert_eq!(task.delete_process("e1").await.expect("deleted").status, 7);
    assert!(task.state("e1").await.expect_err("gone").is_not_found());

    task.pause().await.expect("paused");
    assert_eq!(task.state("").await.expect("a state").status, Status::Paused);
    task.resume().await.expect("resumed");
    assert!(!task.pids().await.expect("pids").is_empty());
    let stats = task.stats().await.expect("stats").expect("some");
    assert!(stats.type_url.contains("cgroups"), "{}", stats.type_url);
    let limits = serde_json::json!({"memory": {"limit": 64 << 20}}).to_string();
    let limits = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: limits.into_bytes(),
    };
    task.update(Some(limits), HashMap::new()).await.expect("updated");

    let err = manager.delete(&f.namespace, "c2").await.expect_err("still runs");
    assert!(err.text().contains("failed to delete task"), "{err}");
    task.kill("", SIGKILL, true).await.expect("killed");
    let exit = tokio::time::timeout(PATIENCE, task.wait("")).await.expect("in time");
    assert_eq!(exit.expect("an exit").status, 137);
    let late = task.kill("", SIGKILL, false).await.expect_err("finished");
    assert!(late.is_not_found(), "{late}");
    manager.delete(&f.namespace, "c2").await.expect("deleted");
    f.assert_clean("c2");
}

async fn a_restart_loses_nothing(shim: Shim) {
    let (mut f, manager) = Fixture::new(shim);
    let task = f.create(&manager, "c3", "busybox sleep 1; exit 5").await.expect("created");
    task.start("").await.expect("started");
    drop(task);
    let manager = f.restart(manager).await;
    let task = manager.get(&f.namespace, "c3").await.expect("found again");
    let exit = tokio::time::timeout(PATIENCE, task.wait("")).await.expect("in time");
    assert_eq!(exit.expect("an exit").status, 5);
    drop(task);
    // Ended, not deleted: it is still there after another restart.
    let manager = f.restart(manager).await;
    let task = manager.get(&f.namespace, "c3").await.expect("found again");
    assert_eq!(task.state("").await.expect("a state").exit_status, 5);
    manager.delete(&f.namespace, "c3").await.expect("deleted");
    f.assert_clean("c3");
}

async fn a_killed_shim_takes_its_task_along(shim: Shim) {
    let (f, manager) = Fixture::new(shim);
    let mut events = f.subscribe();
    let task = f.create(&manager, "c4", "busybox sleep 1000").await.expect("created");
    let pid = task.start("").await.expect("started");
    let shims = f.shims();
    assert_eq!(shims.len(), 1, "{shims:?}");
    let shim = rustix::process::Pid::from_raw(shims[0]).expect("a pid");
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).expect("killed");
    let exit = exit_of(&*until(&mut events, "/tasks/exit").await);
    assert_eq!((exit.container_id.as_str(), exit.exit_status), ("c4", 137));
    let delete = until(&mut events, "/tasks/delete").await;
    let delete = TaskDelete::decode(delete.event.value.as_slice()).expect("a deletion");
    assert_eq!(delete.container_id, "c4");
    assert_eq!(task.wait("").await.expect("an exit").status, 137);
    f.assert_clean("c4");
    // Whoever adopted it may not have reaped it yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the container still runs: {stat}");
}

async fn what_cannot_run_leaves_nothing(shim: Shim) {
    let (f, manager) = Fixture::new(shim);
    std::fs::remove_file(f.path("image/bin/sh")).expect("removed");
    let err = f.create(&manager, "c5", "true").await.err().expect("no shell");
    assert!(err.is_unknown(), "{err:?}");
    let text = err.text();
    assert!(text.starts_with("failed to create shim task: OCI runtime create failed"), "{text}");
    assert!(text.contains("/bin/sh"), "{text}");
    f.assert_clean("c5");
}

/// Waits until every thread of `pid` has stopped: the signal is sent to one of them, and the others
/// run on for a moment, in which a shim of many threads can still answer.
async fn until_stopped(pid: rustix::process::Pid) {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    let stopped = || {
        let threads = std::fs::read_dir(&tasks).expect("threads").flatten();
        let stats = threads.filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
        stats.into_iter().all(|stat| stat.contains(") T "))
    };
    let wait = async {
        while !stopped() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("stopped in time");
}

async fn a_frozen_shim_is_degraded_and_kept(shim: Shim) {
    let (mut f, manager) = Fixture::new(shim);
    let task = f.create(&manager, "c6", "busybox sleep 1000").await.expect("created");
    task.start("").await.expect("started");
    let shim = f.shim();
    let signal = |signal| rustix::process::kill_process(shim, signal).expect("signalled");
    signal(rustix::process::Signal::STOP);
    until_stopped(shim).await;
    assert!(task.state("").await.expect_err("frozen").is_deadline_exceeded());
    assert!(task.is_degraded());
    drop(task);
    let manager = f.restart(manager).await;
    manager.loaded().await;
    let task = manager.get(&f.namespace, "c6").await.expect("kept");
    assert!(task.is_degraded());
    signal(rustix::process::Signal::CONT);
    assert_eq!(task.state("").await.expect("thawed").status, Status::Running);
    task.kill("", SIGKILL, true).await.expect("killed");
    tokio::time::timeout(PATIENCE, task.wait("")).await.expect("in time").expect("an exit");
    manager.delete(&f.namespace, "c6").await.expect("deleted");
    f.assert_clean("c6");
}

async fn an_exit_while_the_daemon_is_down_is_kept(shim: Shim) {
    let (mut f, manager) = Fixture::new(shim);
    let mut events = f.subscribe();
    let task = f.create(&manager, "c7", "busybox sleep 0.5; exit 9").await.expect("created");
    let pid = task.start("").await.expect("started");
    drop(task);
    f.stop(manager);
    let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
    while proc.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let ended = std::time::SystemTime::now();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let manager = f.start();
    let task = manager.get(&f.namespace, "c7").await.expect("found");
    let state = task.state("").await.expect("a state");
    assert_eq!((state.status, state.exit_status), (Status::Stopped, 9));
    let exited_at = state.exited_at.expect("a time");
    // A shim may take the time after it has reaped the process, which we saw go.
    let off = ended.duration_since(exited_at).unwrap_or_else(|later| later.duration());
    assert!(off < std::time::Duration::from_millis(500), "{off:?}");
    if matches!(shim, Shim::Ours) {
        // Debian's gives its event up after a while; ours keeps it for the next daemon.
        let exit = exit_of(&*until(&mut events, "/tasks/exit").await);
        assert_eq!((exit.container_id.as_str(), exit.exit_status), ("c7", 9));
    }
    manager.delete(&f.namespace, "c7").await.expect("deleted");
    f.assert_clean("c7");
}

async fn many_at_once_do_not_disturb_each_other(shim: Shim) {
    const TASKS: u32 = 12;
    let (f, manager) = Fixture::new(shim);
    let lives = (0..TASKS).map(|n| {
        let (f, manager) = (&f, &manager);
        async move {
            let id = format!("many-{n}");
            let task = f.create(manager, &id, &format!("exit {n}")).await.expect("created");
            task.start("").await.expect("started");
            let exit = tokio::time::timeout(PATIENCE, task.wait("")).await.expect("in time");
            assert_eq!(exit.expect("an exit").status, n);
            let exit = manager.delete(&f.namespace, &id).await.expect("deleted");
            assert_eq!(exit.status, n);
            assert!(!f.bundle(&id).exists());
        }
    });
    let mut lives: Vec<_> = lives.map(Box::pin).collect();
    // All are polled together, so their calls interleave.
    std::future::poll_fn(|cx| {
        lives.retain_mut(|life| life.as_mut().poll(cx).is_pending());
        if lives.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert!(manager.tasks(None).await.expect("listed").is_empty());
    f.assert_clean("many-0");
}

/// More than a shim takes on one connection.
const GIVEN_UP: usize = 1500;

async fn waits_that_are_given_up_cost_the_shim_nothing(shim: Shim) {
    let (f, manager) = Fixture::new(shim);
    let task = f.create(&manager, "w", "while :; do busybox sleep 1; done").await.expect("made");
    task.start("").await.expect("started");
    for _ in 0..GIVEN_UP / 100 {
        let mut some = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let task = Arc::clone(&task);
            some.spawn(async move { task.wait("").await });
        }
        // Long enough to be sent.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(some.try_join_next().is_none(), "it still runs");
        some.shutdown().await;
    }
    assert_eq!(task.state("").await.expect("it answers").status, Status::Running);
    task.kill("", SIGKILL, true).await.expect("killed");
    let exit = tokio::time::timeout(PATIENCE, task.wait("")).await.expect("in time");
    assert_eq!(exit.expect("an exit").status, 137);
    manager.delete(&f.namespace, "w").await.expect("deleted");
    f.assert_clean("w");
}

/// Makes two tests of each life.
macro_rules! lives {
    ($($name:ident => $debian:ident, $ours:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $debian() {
                $name(Shim::Debian).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $ours() {
                $name(Shim::Ours).await;
            }
        )*
    };
}

lives! {
    a_task_runs_and_is_deleted => root_debian_a_task_runs_and_is_deleted, root_ours_a_task_runs_and_is_deleted;
    exec_pause_pids_stats_and_kill => root_debian_exec_pause_pids_stats_and_kill, root_ours_exec_pause_pids_stats_and_kill;
    a_restart_loses_nothing => root_debian_a_restart_loses_nothing, root_ours_a_restart_loses_nothing;
    a_killed_shim_takes_its_task_along => root_debian_a_killed_shim_takes_its_task_along, root_ours_a_killed_shim_takes_its_task_along;
    what_cannot_run_leaves_nothing => root_debian_what_cannot_run_leaves_nothing, root_ours_what_cannot_run_leaves_nothing;
    a_frozen_shim_is_degraded_and_kept => root_debian_a_frozen_shim_is_degraded_and_kept, root_ours_a_frozen_shim_is_degraded_and_kept;
    an_exit_while_the_daemon_is_down_is_kept => root_debian_an_exit_while_the_daemon_is_down_is_kept, root_ours_an_exit_while_the_daemon_is_down_is_kept;
    waits_that_are_given_up_cost_the_shim_nothing => root_debian_waits_that_are_given_up_cost_the_shim_nothing, root_ours_waits_that_are_given_up_cost_the_shim_nothing;
    many_at_once_do_not_disturb_each_other => root_debian_many_at_once_do_not_disturb_each_other, root_ours_many_at_once_do_not_disturb_each_other;
}
