//! The restart monitor: containers that are started again, or not, by their labels.

use std::fs;
use std::path::PathBuf;

use gantry_testkit::{Daemon, DaemonKind, eventually};

use crate::rig::{Client, Rig, rows};

/// A daemon whose monitor gives clients a second: containerd's polls that often.
macro_rules! monitor_test {
    ($test:ident, $scenario:ident, $daemon:ident, $client:ident) => {
        #[test]
        fn $test() {
            let section = "[plugins.\"io.containerd.internal.v1.restart\"]\n  interval = \"1s\"";
            let daemon = Daemon::$daemon().config(section).start();
            $scenario(&mut Rig::with(daemon, Client::$client));
        }
    };
}

monitor_test!(root_always, always, gantryd, Ctr);
monitor_test!(root_always_by_gantry, always, gantryd, Gantry);
monitor_test!(root_always_on_containerd, always, containerd, Ctr);
monitor_test!(root_stops_are_heeded, stops_are_heeded, gantryd, Ctr);
monitor_test!(root_on_failure_counts, on_failure_counts, gantryd, Ctr);
monitor_test!(root_kill9_between, kill9_between, gantryd, Ctr);
monitor_test!(root_kill9_during_a_restart, kill9_during_a_restart, gantryd, Ctr);
monitor_test!(root_status_stopped, status_stopped, gantryd, Ctr);
monitor_test!(root_status_stopped_on_containerd, status_stopped, containerd, Ctr);
monitor_test!(root_started_by_hand, started_by_hand, gantryd, Ctr);
monitor_test!(root_a_created_container, a_created_container, gantryd, Ctr);
monitor_test!(root_a_created_container_on_containerd, a_created_container, containerd, Ctr);

const LABEL: &str = "containerd.io/restart.";

/// Runs `script` detached with the labels for `policy`; its output goes to the returned file.
fn run(rig: &Rig, id: &str, policy: &str, script: &str) -> PathBuf {
    let log = rig.scratch(&format!("{id}.log"));
    let image = "docker.io/library/busybox:1";
    let mut labels = vec![format!("policy={policy}"), format!("loguri=file://{}", log.display())];
    // containerd's monitor takes a task that its client is about to start for one that has ended.
    let at_once = rig.daemon.kind() == DaemonKind::Gantryd;
    if at_once {
        labels.push("status=running".to_owned());
    }
    let mut args = vec!["run".to_owned(), "-d".to_owned()];
    args.extend(["--log-uri".to_owned(), format!("file://{}", log.display())]);
    for label in labels {
        args.extend(["--label".to_owned(), format!("{LABEL}{label}")]);
    }
    args.extend([image, id, "sh", "-c", script].map(str::to_owned));
    rig.client.ok(args);
    if !at_once {
        label(rig, id, "status=running");
    }
    log
}

fn label(rig: &Rig, id: &str, label: &str) {
    rig.client.ok(["containers", "label", id, &format!("{LABEL}{label}")]);
}

/// Kills the task, and nothing else.
fn kill(rig: &Rig, id: &str) {
    rig.client.ok(["tasks", "kill", "--signal", "SIGKILL", id]);
}

/// Pid and status of a task.
fn task(rig: &Rig, id: &str) -> Option<(String, String)> {
    let list = rows(&rig.client.ok(["tasks", "ls"]));
    let row = list.into_iter().find(|row| row[0] == id)?;
    Some((row[1].clone(), row[2].clone()))
}

/// Waits until the task runs under another pid than `before`; returns the new one.
fn runs_anew(rig: &Rig, id: &str, before: &str) -> String {
    let mut pid = String::new();
    eventually(&format!("{id} runs again"), || match task(rig, id) {
        Some((new, status)) if status == "RUNNING" && new != before => {
            pid = new;
            Ok(())
        }
        other => Err(format!("{other:?}")),
    });
    pid
}

fn is_stopped(rig: &Rig, id: &str) {
    eventually(&format!("{id} is stopped"), || match task(rig, id) {
        Some((_, status)) if status == "STOPPED" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn count(rig: &Rig, id: &str) -> Option<String> {
    let info = rig.client.ok(["containers", "info", id]);
    let key = format!("\"{LABEL}count\": \"");
    let rest = &info[info.find(&key)? + key.len()..];
    Some(rest[..rest.find('"')?].to_owned())
}

fn ups(log: &PathBuf) -> usize {
    fs::read_to_string(log).unwrap_or_default().matches("up").count()
}

const SLEEP: &str = "echo up; exec sleep 1000";

/// Labels that end the monitor's care, and the end of the container.
fn remove(rig: &Rig, id: &str) {
    rig.client.ok(["containers", "label", id, &format!("{LABEL}status=")]);
    rig.remove(id);
}

fn always(rig: &mut Rig) {
    rig.busybox();
    let log = run(rig, "c1", "always", SLEEP);
    let (mut pid, _) = task(rig, "c1").unwrap();
    for restarts in 1..=2 {
        kill(rig, "c1");
        pid = runs_anew(rig, "c1", &pid);
        eventually("it says so", || {
            if ups(&log) == restarts + 1 { Ok(()) } else { Err(format!("{}", ups(&log))) }
        });
        // Debian's version counts for on-failure only.
        if rig.daemon.kind() == DaemonKind::Gantryd {
            assert_eq!(count(rig, "c1"), Some(restarts.to_string()));
        }
    }
    remove(rig, "c1");
    rig.daemon.assert_clean();
}

/// What is stopped stays so, and after a restart of the daemon `always` differs.
fn stops_are_heeded(rig: &mut Rig) {
    rig.busybox();
    let policies = [("c1", "always"), ("c2", "unless-stopped"), ("c3", "no")];
    for (id, policy) in policies {
        run(rig, id, policy, SLEEP);
    }
    run(rig, "last", "always", SLEEP);
    let (before, _) = task(rig, "c1").unwrap();
    let (last, _) = task(rig, "last").unwrap();
    for (id, _) in policies {
        label(rig, id, "explicitly-stopped=true");
        kill(rig, id);
        is_stopped(rig, id);
    }
    // Whatever was to be done about the three is done once the last, killed later, runs again.
    kill(rig, "last");
    let last = runs_anew(rig, "last", &last);
    for (id, _) in policies {
        is_stopped(rig, id);
    }
    rig.daemon.kill9();
    rig.daemon.start_again();
    runs_anew(rig, "c1", &before);
    assert_eq!(task(rig, "last").map(|(pid, _)| pid), Some(last), "what runs is left alone");
    is_stopped(rig, "c2");
    is_stopped(rig, "c3");
    for id in ["c1", "c2", "c3", "last"] {
        remove(rig, id);
    }
    rig.daemon.assert_clean();
}

fn on_failure_counts(rig: &mut Rig) {
    rig.busybox();
    let fails = run(rig, "fails", "on-failure:2", "echo up; exit 3");
    let ends = run(rig, "ends", "on-failure", "echo up; exit 0");
    eventually("it was started as often as it may", || {
        match (count(rig, "fails").as_deref(), task(rig, "fails")) {
            (Some("2"), Some((_, status))) if status == "STOPPED" && ups(&fails) == 3 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    run(rig, "last", "on-failure", SLEEP);
    let (last, _) = task(rig, "last").unwrap();
    kill(rig, "last");
    runs_anew(rig, "last", &last);
    assert_eq!(ups(&fails), 3);
    assert_eq!(ups(&ends), 1, "one that did not fail is not started again");
    assert_eq!(count(rig, "ends"), None);
    for id in ["fails", "ends", "last"] {
        remove(rig, id);
    }
    rig.daemon.assert_clean();
}

/// What ended while the daemon was away is started when it is back, and counted on.
fn kill9_between(rig: &mut Rig) {
    rig.busybox();
    run(rig, "c1", "unless-stopped", SLEEP);
    run(rig, "c2", "on-failure:1", SLEEP);
    let pids = ["c1", "c2"].map(|id| task(rig, id).unwrap().0);
    rig.daemon.kill9();
    for pid in &pids {
        let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    rig.daemon.start_again();
    runs_anew(rig, "c1", &pids[0]);
    let pid = runs_anew(rig, "c2", &pids[1]);
    assert_eq!(count(rig, "c1").as_deref(), Some("1"));
    assert_eq!(count(rig, "c2").as_deref(), Some("1"));
    rig.daemon.kill9();
    rig.daemon.start_again();
    // Its one restart is used up, and a restart of the daemon does not change that.
    assert_eq!(task(rig, "c2").map(|(pid, _)| pid), Some(pid));
    kill(rig, "c2");
    is_stopped(rig, "c2");
    let (c1, _) = task(rig, "c1").unwrap();
    kill(rig, "c1");
    runs_anew(rig, "c1", &c1);
    is_stopped(rig, "c2");
    for id in ["c1", "c2"] {
        remove(rig, id);
    }
    rig.daemon.assert_clean();
}

/// The daemon dies when the old task is gone and the new one is not there yet.
fn kill9_during_a_restart(rig: &mut Rig) {
    rig.busybox();
    rig.daemon.stop();
    rig.daemon.set_env(gantry_failpoint::PLAN_ENV, "bundle.create=abort@2");
    rig.daemon.start_again();
    run(rig, "c1", "on-failure:1", SLEEP);
    let (pid, _) = task(rig, "c1").unwrap();
    kill(rig, "c1");
    eventually("the daemon dies", || {
        if rig.daemon.is_alive() { Err("it lives".to_owned()) } else { Ok(()) }
    });
    rig.daemon.set_env(gantry_failpoint::PLAN_ENV, "");
    rig.daemon.kill9();
    rig.daemon.start_again();
    let pid = runs_anew(rig, "c1", &pid);
    assert_eq!(count(rig, "c1").as_deref(), Some("1"));
    // That was the one restart it has.
    kill(rig, "c1");
    is_stopped(rig, "c1");
    assert_eq!(task(rig, "c1").map(|(pid, _)| pid), Some(pid));
    remove(rig, "c1");
    rig.daemon.assert_clean();
}

fn status_stopped(rig: &mut Rig) {
    rig.busybox();
    run(rig, "c1", "always", SLEEP);
    label(rig, "c1", "status=stopped");
    eventually("its task is gone", || match task(rig, "c1") {
        None => Ok(()),
        other => Err(format!("{other:?}")),
    });
    label(rig, "c1", "status=running");
    runs_anew(rig, "c1", "");
    remove(rig, "c1");
    rig.daemon.assert_clean();
}

/// A client that starts a stopped container makes it one that was never restarted or stopped.
fn started_by_hand(rig: &mut Rig) {
    rig.busybox();
    run(rig, "c1", "on-failure:1", "echo up; [ -e /go ] && exec sleep 1000; touch /go; exit 1");
    eventually("it was restarted", || match (task(rig, "c1"), count(rig, "c1")) {
        (Some((_, status)), Some(count)) if status == "RUNNING" && count == "1" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    label(rig, "c1", "explicitly-stopped=true");
    kill(rig, "c1");
    is_stopped(rig, "c1");
    rig.client.run(["tasks", "delete", "c1"]);
    rig.client.ok(["tasks", "start", "-d", "c1"]);
    eventually("it begins anew", || match count(rig, "c1").as_deref() {
        Some("0") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (pid, _) = task(rig, "c1").unwrap();
    kill(rig, "c1");
    runs_anew(rig, "c1", &pid);
    remove(rig, "c1");
    rig.daemon.assert_clean();
}

/// A container that its client has only made is started after the interval.
fn a_created_container(rig: &mut Rig) {
    let image = rig.busybox();
    let status = format!("{LABEL}status=running");
    rig.client.ok(["containers", "create", "--label", &status, &image, "c1", "sleep", "1000"]);
    runs_anew(rig, "c1", "");
    remove(rig, "c1");
    rig.daemon.assert_clean();
}
