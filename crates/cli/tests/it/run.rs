//! Containers that run: output, exit codes, terminals, execs, signals.

use std::time::Duration;

use gantry_testkit::eventually;

use crate::support::{World, with_each_client};

/// Waits until the task is in this state.
pub(crate) fn wait_for_status(world: &World, id: &str, status: &str) {
    eventually(&format!("{id} is {status}"), || {
        let listed = world.ctl.ok(["tasks", "ls"]);
        let found = listed.lines().any(|l| l.starts_with(id) && l.contains(status));
        if found { Ok(()) } else { Err(listed) }
    });
}

/// Kills, deletes and removes a container.
pub(crate) fn remove(world: &World, id: &str) {
    let _ = world.ctl.run(["tasks", "kill", "-s", "SIGKILL", id]);
    wait_for_status(world, id, "STOPPED");
    // The exit code of a deleted task is the command's.
    assert_eq!(world.ctl.run(["tasks", "rm", id]).code, 137);
    world.ctl.ok(["containers", "rm", id]);
}

#[test]
fn root_run_gives_output_and_exit_code() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let output = world.ctl.run([
            "run",
            "--rm",
            "--env",
            "A=b",
            "--cwd",
            "/tmp",
            &image,
            "c1",
            "sh",
            "-c",
            "echo out $A $PWD; echo err >&2; exit 42",
        ]);
        assert_eq!((output.stdout.as_str(), output.code), ("out b /tmp\n", 42));
        assert!(output.stderr.contains("err\n"), "{}", output.stderr);

        // A lot of output arrives whole.
        let output = world.ctl.ok(["run", "--rm", &image, "c2", "seq", "1", "50000"]);
        assert_eq!(output.lines().count(), 50_000);
        assert!(output.ends_with("50000\n"));

        let output = world.ctl.run_with_input(["run", "--rm", &image, "c3", "cat"], b"typed\n");
        assert_eq!((output.stdout.as_str(), output.code), ("typed\n", 0), "{}", output.stderr);

        let failure = world.ctl.run(["run", "--rm", &image, "c4", "no-such-program"]);
        assert!(failure.code != 0 && failure.stderr.contains("no-such-program"), "{failure:?}");
        let failure = world.ctl.run(["run", "--rm", &image, "bad/id", "true"]);
        assert!(failure.code != 0 && failure.stderr.contains("bad/id"), "{failure:?}");
        let killed =
            world.ctl.run(["run", "--rm", &image, "c5", "sh", "-c", "kill -9 $$; sleep 9"]);
        // Init of its pid namespace can't kill itself.
        assert!(killed.code == 0 || killed.code == 137, "{killed:?}");
        assert_eq!(world.ctl.ok(["containers", "ls", "-q"]), "");
    });
}

#[test]
fn root_options_reach_the_container() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let ctl = &world.ctl;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "from outside\n").unwrap();
        let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", dir.path().display());
        let command = "cat /mnt/f; touch /mnt/g 2>/dev/null || echo read-only; hostname";
        let output = ctl.ok(["run", "--rm", "--mount", &mount, &image, "c1", "sh", "-c", command]);
        assert!(output.starts_with("from outside\nread-only\n"), "{output}");
        let output = ctl.ok(["run", "--rm", "--user", "app", &image, "c2", "id"]);
        assert_eq!(output, "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n");
        let command = "touch /x 2>/dev/null || echo sealed";
        let output = ctl.ok(["run", "--rm", "--read-only", &image, "c3", "sh", "-c", command]);
        assert_eq!(output, "sealed\n");
        let limit = (64 << 20).to_string();
        let command = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null \
            || grep -c . /proc/self/cgroup";
        ctl.ok([
            "run",
            "--rm",
            "--memory-limit",
            &limit,
            "--cpus",
            "0.5",
            &image,
            "c4",
            "sh",
            "-c",
            command,
        ]);
        let host = std::fs::read_link("/proc/self/ns/net").unwrap();
        let command = "readlink /proc/self/ns/net";
        let output = ctl.ok(["run", "--rm", "--net-host", &image, "c5", "sh", "-c", command]);
        assert_eq!(output.trim(), host.to_str().unwrap());
        let command = "grep CapEff /proc/self/status";
        let plain = ctl.ok(["run", "--rm", &image, "c6", "sh", "-c", command]);
        let all = ctl.ok(["run", "--rm", "--privileged", &image, "c7", "sh", "-c", command]);
        assert_ne!(plain, all);
        let pid_file = dir.path().join("pid");
        let path = pid_file.to_str().unwrap();
        ctl.ok(["run", "--rm", "--pid-file", path, &image, "c8", "true"]);
        assert!(std::fs::read_to_string(&pid_file).unwrap().parse::<u32>().is_ok());
    });
}

#[test]
fn root_a_detached_container_is_worked_with() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let ctl = &world.ctl;
        ctl.ok(["run", "-d", "--label", "k=v", &image, "c1", "sleep", "1000"]);
        wait_for_status(world, "c1", "RUNNING");
        let failure = ctl.fail(["run", "-d", &image, "c1", "true"]);
        assert!(failure.contains("already exists"), "{failure}");

        let output =
            ctl.run(["tasks", "exec", "--exec-id", "e1", "c1", "sh", "-c", "echo $0; exit 3"]);
        assert_eq!((output.stdout.as_str(), output.code), ("sh\n", 3), "{}", output.stderr);
        ctl.ok(["tasks", "exec", "-d", "--exec-id", "e2", "c1", "sleep", "999"]);
        let listed = ctl.ok(["tasks", "ps", "c1"]);
        assert!(listed.lines().count() >= 3 && listed.contains("e2"), "{listed}");
        let failure = ctl.fail(["tasks", "exec", "--exec-id", "e2", "c1", "true"]);
        assert!(failure.contains("e2"), "{failure}");
        ctl.ok(["tasks", "kill", "--exec-id", "e2", "-s", "SIGKILL", "c1"]);
        eventually("the exec is over", || {
            let output = ctl.run(["tasks", "rm", "--exec-id", "e2", "c1"]);
            if output.code == 137 { Ok(()) } else { Err(output.text()) }
        });

        let metrics = ctl.ok(["tasks", "metrics", "c1"]);
        assert!(metrics.contains("memory") && metrics.contains("pids.current"), "{metrics}");
        ctl.ok(["tasks", "pause", "c1"]);
        wait_for_status(world, "c1", "PAUSED");
        ctl.ok(["tasks", "resume", "c1"]);
        wait_for_status(world, "c1", "RUNNING");

        let listed = ctl.ok(["containers", "ls"]);
        assert!(listed.contains("c1") && listed.contains("io.containerd.runc.v2"), "{listed}");
        assert!(ctl.ok(["containers", "info", "c1"]).contains("\"k\": \"v\""));
        ctl.ok(["containers", "label", "c1", "k=w"]);
        assert_eq!(ctl.ok(["containers", "ls", "-q", "labels.k==w"]), "c1\n");
        ctl.fail(["containers", "rm", "c1"]);
        ctl.fail(["tasks", "rm", "c1"]);
        remove(world, "c1");
        let failure = ctl.fail(["tasks", "kill", "c1"]);
        assert!(failure.contains("not found"), "{failure}");
    });
}

#[test]
fn root_a_terminal_works() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let mut terminal = world.ctl.spawn_on_terminal(["run", "--rm", "-t", &image, "c1", "sh"]);
        terminal.wait_for("# ");
        terminal.send("stty size; echo end$((1+1))\n");
        terminal.wait_for("24 80");
        terminal.resize(101, 31);
        eventually("the size arrives", || {
            terminal.send("stty size\n");
            std::thread::sleep(Duration::from_millis(50));
            if terminal.seen().contains("31 101") { Ok(()) } else { Err(terminal.seen()) }
        });
        let mut exec =
            world.ctl.spawn_on_terminal(["tasks", "exec", "-t", "--exec-id", "e1", "c1", "sh"]);
        exec.wait_for("# ");
        exec.send("tty; exit 5\n");
        exec.wait_for("/dev/pts/");
        assert_eq!(exec.wait(), 5);
        terminal.send("exit 3\n");
        assert_eq!(terminal.wait(), 3);
    });
}

#[test]
fn root_signals_reach_a_foreground_container() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
        let running = world.ctl.spawn(["run", "--rm", &image, "c1", "sh", "-c", script]);
        running.wait_for_output("ready");
        world.ctl.ok(["tasks", "kill", "c1"]);
        let output = running.wait();
        assert_eq!((output.stdout.as_str(), output.code), ("ready\ngot it\n", 9));
    });
}
