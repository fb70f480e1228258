//! `run` in its forms: foreground, detached, on a terminal, with streams and signals.

use gantry_testkit::{Daemon, eventually};

use crate::rig::{Client, Rig, rows};

scenarios!(
    exit_code_and_output,
    both_streams_and_stdin,
    much_output_arrives_whole,
    detached,
    on_a_terminal,
    environment_and_directory,
    a_missing_program_is_an_error_and_leaves_nothing,
    the_same_id_twice_is_refused,
    host_network_and_mounts,
);

fn exit_code_and_output(rig: &mut Rig) {
    let image = rig.busybox();
    let out = rig.client.run(["run", "--rm", &image, "c1", "sh", "-c", "echo out; exit 42"]);
    assert_eq!((out.stdout.as_str(), out.code), ("out\n", 42), "{}", out.stderr);
    assert_eq!(rig.client.ok(["containers", "ls", "-q"]), "");
    rig.daemon.assert_clean();
}

fn both_streams_and_stdin(rig: &mut Rig) {
    let image = rig.busybox();
    let script = "read line; echo $line | tr a-z A-Z; echo problem >&2";
    let args = ["run", "--rm", &image, "c1", "sh", "-c", script];
    let out = rig.client.run_with_input(args, b"some text\n");
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("SOME TEXT\n", "problem\n"));
}

fn much_output_arrives_whole(rig: &mut Rig) {
    let image = rig.busybox();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line-$i-0123456789; i=$((i+1)); done";
    let out = rig.client.ok(["run", "--rm", &image, "c1", "sh", "-c", script]);
    assert_eq!(out.lines().count(), 20000);
    assert!(out.ends_with("line-19999-0123456789\n"));
}

fn detached(rig: &mut Rig) {
    let image = rig.busybox();
    rig.sleeper(&image, "c1");
    let tasks = rows(&rig.client.ok(["tasks", "ls"]));
    assert_eq!((tasks[0][0].as_str(), tasks[0][2].as_str()), ("c1", "RUNNING"));
    let pid: u32 = tasks[0][1].parse().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    let refused = rig.client.fail(["containers", "delete", "c1"]);
    assert!(!refused.is_empty(), "a container with a task is not deleted");
    rig.remove("c1");
    rig.daemon.assert_clean();
}

fn on_a_terminal(rig: &mut Rig) {
    let image = rig.busybox();
    let mut terminal = rig.client.spawn_on_terminal(["run", "--rm", "-t", &image, "c1", "sh"]);
    terminal.wait_for("# ");
    terminal.send("stty size; tty\n");
    terminal.wait_for("24 80");
    terminal.wait_for("/dev/pts/0");
    terminal.resize(100, 30);
    eventually("the size arrives", || {
        terminal.send("stty size\n");
        if terminal.seen().contains("30 100") { Ok(()) } else { Err(terminal.seen()) }
    });
    terminal.send("exit 3\n");
    assert_eq!(terminal.wait(), 3);
    rig.daemon.assert_clean();
}

fn environment_and_directory(rig: &mut Rig) {
    let image = rig.busybox();
    let out = rig.client.ok([
        "run",
        "--rm",
        "--env",
        "COLOUR=blue",
        "--cwd",
        "/bin",
        &image,
        "c1",
        "sh",
        "-c",
        "echo $COLOUR; pwd",
    ]);
    assert_eq!(out, "blue\n/bin\n");
}

fn a_missing_program_is_an_error_and_leaves_nothing(rig: &mut Rig) {
    let image = rig.busybox();
    let error = rig.client.fail(["run", "--rm", &image, "c1", "/no/such/program"]);
    assert!(error.contains("/no/such/program"), "{error}");
    assert!(error.contains("no such file or directory"), "{error}");
    assert_eq!(rig.client.ok(["tasks", "ls", "-q"]), "");
    // ctr 1.6 leaves the container and its snapshot when the task can't be made.
    let _ = rig.client.run(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

fn the_same_id_twice_is_refused(rig: &mut Rig) {
    let image = rig.busybox();
    rig.sleeper(&image, "c1");
    let error = rig.client.fail(["run", "-d", &image, "c1", "sleep", "1"]);
    assert!(error.contains("already exists"), "{error}");
    assert_eq!(rows(&rig.client.ok(["tasks", "ls"])).len(), 1);
    rig.remove("c1");
}

fn host_network_and_mounts(rig: &mut Rig) {
    let image = rig.busybox();
    let dir = rig.scratch("shared");
    std::fs::create_dir(&dir).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", dir.display());
    let out = rig.client.ok([
        "run",
        "--rm",
        "--net-host",
        "--mount",
        &mount,
        &image,
        "c1",
        "sh",
        "-c",
        "echo from inside >/mnt/file; readlink /proc/self/ns/net",
    ]);
    assert_eq!(std::fs::read_to_string(dir.join("file")).unwrap(), "from inside\n");
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(out.trim(), host.to_string_lossy());
}

/// What ends with its container is not waited for: its root is mounted volatile by our client,
/// unless told otherwise.
#[test]
fn root_a_container_that_is_removed_syncs_nothing() {
    let rig = Rig::with(Daemon::gantryd().start(), Client::Gantry);
    let image = rig.busybox();
    let script = "grep ' / / ' /proc/self/mountinfo";
    let root = |args: &[&str]| {
        let args = [&["run", "--rm"], args, &[&image, "c1", "sh", "-c", script]].concat();
        rig.client.ok(args)
    };
    assert!(root(&[]).contains("volatile"));
    let told = "containerd.io/snapshot/overlay.volatile=false";
    assert!(!root(&["--snapshotter-label", told]).contains("volatile"));
    rig.daemon.assert_clean();
}
