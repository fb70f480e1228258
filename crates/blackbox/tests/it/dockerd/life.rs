//! Run, exec, logs, attach, wait, stop, update, events, memory; restarts of both daemons.

use std::io::Write as _;
use std::process::{Command, Stdio};

use gantry_testkit::{Daemon, eventually_within, system_program};

use super::{Dockerd, START_TIMEOUT};

#[test]
fn root_dockerd_lives_on_gantryd() {
    let mut daemon = Daemon::gantryd().start();
    let mut docker = Dockerd::start(&daemon.address());
    docker.load();
    let run = ["run", "--network=none"];
    let with = |rest: &[&'static str]| run.iter().copied().chain(rest.iter().copied()).collect();

    let args: Vec<&str> = with(&["--rm", "busybox:1", "sh", "-c", "echo hi; exit 7"]);
    let output = docker.run(&args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (&b"hi\n"[..], Some(7)),
        "{stderr}"
    );

    let old = "--runtime=io.containerd.runtime.v1.linux";
    let args: Vec<&str> = with(&["--rm", old, "busybox:1", "echo", "old"]);
    assert_eq!(docker.ok(&args), "old\n");

    let script = "echo started; while :; do sleep 0.1; done";
    let args: Vec<&str> = with(&["-d", "--name=c1", "busybox:1", "sh", "-c", script]);
    docker.ok(&args);
    assert_eq!(docker.ok(&["exec", "c1", "echo", "inside"]), "inside\n");
    assert_eq!(docker.run(&["exec", "c1", "sh", "-c", "exit 9"]).status.code(), Some(9));
    assert_eq!(docker.ok(&["logs", "c1"]), "started\n");
    assert!(docker.ok(&["top", "c1"]).contains("sleep 0.1"));
    assert!(docker.ok(&["stats", "--no-stream", "c1"]).contains("c1"));
    docker.ok(&["pause", "c1"]);
    assert_eq!(docker.state("c1").trim(), "paused 0");
    docker.ok(&["unpause", "c1"]);

    docker.kill();
    docker.spawn();
    assert_eq!(docker.state("c1").trim(), "running 0", "live-restore");
    assert_eq!(docker.ok(&["exec", "c1", "echo", "again"]), "again\n");

    daemon.kill9();
    daemon.start_again();
    eventually_within(START_TIMEOUT, "dockerd finds gantryd again", || {
        let output = docker.run(&["exec", "c1", "echo", "again"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.stdout == b"again\n" { Ok(()) } else { Err(stderr) }
    });
    docker.ok(&["kill", "c1"]);
    docker.until("c1", "exited 137");
    docker.ok(&["rm", "c1"]);
    assert_eq!(docker.ok(&["ps", "-aq"]), "");
    docker.kill();
    daemon.assert_clean();
}

#[test]
fn root_docker_attaches_waits_stops_and_updates() {
    let daemon = Daemon::gantryd().start();
    let mut docker = Dockerd::start(&daemon.address());
    docker.load();

    // Attached from the start: input goes in, output comes out, and both end.
    let mut cat = Command::new(system_program("docker"))
        .args(["-H", &docker.host(), "run", "-i", "--rm", "--network=none", "busybox:1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"through\n");

    // Attached later: what comes from then on, and the exit code.
    let script = "while ! test -e /go; do sleep 0.1; done; echo went; exit 6";
    let runtime = ["--runtime=io.containerd.runc.v2"];
    docker.detached("n1", &runtime, &["sh", "-c", script]);
    let attach = Command::new(system_program("docker"))
        .args(["-H", &docker.host(), "attach", "--no-stdin", "n1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually_within(START_TIMEOUT, "docker is attached", || {
        let events = docker.events("n1");
        if events.contains(&"attach".to_owned()) { Ok(()) } else { Err(events.join(" ")) }
    });
    docker.ok(&["exec", "n1", "touch", "/go"]);
    let attached = attach.wait_with_output().unwrap();
    assert_eq!((attached.stdout.as_slice(), attached.status.code()), (&b"went\n"[..], Some(6)));
    assert_eq!(docker.ok(&["wait", "n1"]).trim(), "6");
    assert_eq!(docker.ok(&["logs", "n1"]), "went\n");
    let events = docker.events("n1");
    let order: Vec<_> = events.iter().filter(|e| !e.starts_with("exec")).collect();
    assert_eq!(order, ["create", "start", "attach", "die"], "{events:?}");
    assert!(events.iter().any(|e| e.starts_with("exec_die")), "{events:?}");

    // Stop: the signal first, the kill after the grace.
    let stops = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    docker.detached("n2", &[], &["sh", "-c", stops]);
    docker.detached("n3", &[], &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]);
    docker.ok(&["stop", "-t", "30", "n2"]);
    docker.ok(&["stop", "-t", "1", "n3"]);
    assert_eq!(docker.state("n2").trim(), "exited 3");
    assert_eq!(docker.state("n3").trim(), "exited 137");
    docker.ok(&["start", "n2"]);
    docker.ok(&["kill", "-s", "TERM", "n2"]);
    docker.until("n2", "exited 3");

    // Update reaches the cgroup of what runs.
    docker.detached("n4", &["--memory=32m"], &["sleep", "1000"]);
    docker.ok(&["update", "--memory=64m", "--memory-swap=64m", "n4"]);
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null \
                  || cat /sys/fs/cgroup/memory.max";
    assert_eq!(docker.ok(&["exec", "n4", "sh", "-c", limits]).trim(), (64 << 20).to_string());

    // A container that eats its memory is reported so.
    let small = ["--memory=16m", "--memory-swap=16m"];
    docker.detached("n5", &small, &["sh", "-c", "tail /dev/zero"]);
    docker.until("n5", "exited 137");
    assert_eq!(docker.inspect("n5", "{{.State.OOMKilled}}"), "true");
    let events = docker.events("n5");
    let at = |name: &str| events.iter().position(|e| e == name);
    assert!(at("oom").is_some() && at("oom") < at("die"), "{events:?}");

    docker.ok(&["rm", "-f", "n1", "n2", "n3", "n4", "n5"]);
    docker.kill();
    daemon.assert_clean();
}
