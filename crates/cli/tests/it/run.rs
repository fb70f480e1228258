//! Containers that run: options, terminals, signals.

use std::time::Duration;

use gantry_testkit::{Daemon, eventually};

use crate::support::{World, with_client, with_each_client};

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
    world.ctl.ok(["tasks", "rm", id]);
    world.ctl.ok(["containers", "rm", id]);
}

#[test]
fn root_options_reach_the_container() {
    // Debian's ctr does not know all of them.
    with_client("gantry", Daemon::gantryd().start(), |world: &mut World| {
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
