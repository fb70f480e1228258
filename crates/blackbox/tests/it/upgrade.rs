//! Live upgrades of running shims, as an operator makes them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use gantry_testkit::{Daemon, DaemonKind, built_program, eventually, system_program};

use crate::rig::{Client, Rig, rows};

const LINES: &str = "i=0; trap 'exit 6' TERM; while :; do echo line-$i; i=$((i+1)); done";
const SHIM: &str = "containerd-shim-runc-v2";

/// A rig whose containers run under a copy of our shim, which can be replaced as an installation
/// replaces it; returns its path.
fn rig() -> (Rig, PathBuf) {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let program = rig.scratch(SHIM);
    install(&program);
    (rig, program)
}

/// Puts a fresh copy of the shim there: another file of the same name.
fn install(program: &Path) {
    let new = program.with_extension("new");
    fs::copy(built_program(SHIM), &new).unwrap();
    fs::rename(new, program).unwrap();
}

fn run(rig: &Rig, runtime: &str, image: &str, id: &str) -> PathBuf {
    let log = rig.scratch(&format!("{id}.log"));
    let uri = format!("file://{}", log.display());
    let args = ["run", "-d", "--runtime", runtime, "--log-uri", &uri];
    rig.client.ok(args.into_iter().chain([image, id, "sh", "-c", LINES]));
    log
}

/// Columns of `shims ls` by task.
fn shim(rig: &Rig, id: &str) -> Vec<String> {
    let list = rows(&rig.client.ok(["shims", "ls"]));
    list.into_iter().find(|row| row[1] == id).unwrap()
}

/// Whether a process runs the file that is at `program` now; on a mount of its own it shows no path.
fn runs(pid: &str, program: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|stat| (stat.dev(), stat.ino())).unwrap();
    file(Path::new(&format!("/proc/{pid}/exe"))) == file(program)
}

/// Whether a process's program is on a read-only mount, as one that enters containers has to be.
fn is_protected(pid: &str) -> bool {
    let stat = rustix::fs::statvfs(format!("/proc/{pid}/exe")).unwrap();
    stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)
}

fn no_line_is_missing(log: &Path) {
    let text = fs::read_to_string(log).unwrap();
    // The container is killed in the middle of one.
    let whole = &text[..=text.rfind('\n').unwrap()];
    for (n, line) in whole.lines().enumerate() {
        assert_eq!(line, format!("line-{n}"));
    }
    assert!(whole.lines().count() > 100);
}

#[test]
fn root_shims_are_upgraded_in_place() {
    let (rig, program) = rig();
    let image = rig.busybox();
    let log = run(&rig, program.to_str().unwrap(), &image, "c1");
    let before = shim(&rig, "c1");
    assert_eq!((before[0].as_str(), before[4].as_str()), (rig.daemon.namespace(), "CURRENT"));
    let waiting =
        rig.client.spawn(["tasks", "exec", "--exec-id", "e1", "c1", "sh", "-c", "read x"]);
    let list = rig.client.ok(["tasks", "ls"]);
    for _ in 0..3 {
        install(&program);
        assert_eq!(shim(&rig, "c1")[4], "OUTDATED");
        let out = rig.client.ok(["shims", "upgrade"]);
        assert!(out.contains("upgraded"), "{out}");
        let after = shim(&rig, "c1");
        assert_eq!((&after[2], after[4].as_str()), (&before[2], "CURRENT"), "the same process");
        assert!(runs(&after[2], &program), "another program");
        assert!(is_protected(&after[2]), "a container could write to it");
        rig.client.ok(["tasks", "exec", "--exec-id", "e2", "c1", "true"]);
    }
    let out = rig.client.ok(["shims", "upgrade"]);
    assert!(out.contains("runs the program already"), "{out}");
    assert_eq!(rig.client.ok(["tasks", "ls"]), list);
    waiting.kill();
    // The daemon's wait is from before all of it.
    rig.client.ok(["tasks", "kill", "c1"]);
    eventually("it has ended", || {
        let list = rig.client.ok(["tasks", "ls"]);
        if list.contains("STOPPED") { Ok(()) } else { Err(list) }
    });
    let out = rig.client.run(["tasks", "delete", "--force", "c1"]);
    assert!(out.code == 6 || out.stderr.contains("exit code 6"), "{out:?}");
    no_line_is_missing(&log);
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

/// A client that waits for a container's end gets it, with the code, across an upgrade.
#[test]
fn root_a_client_that_waits_notices_nothing() {
    let (rig, program) = rig();
    let image = rig.busybox();
    let flag = rig.scratch("flag");
    fs::create_dir(&flag).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", flag.display());
    let script = "echo up; while [ ! -e /mnt/go ]; do sleep 0.02; done; echo down; exit 9";
    let args = ["run", "--runtime", program.to_str().unwrap(), "--mount", &mount];
    let waiting = rig.client.spawn(args.into_iter().chain([&*image, "c1", "sh", "-c", script]));
    waiting.wait_for_output("up");
    install(&program);
    assert!(rig.client.ok(["shims", "upgrade", "c1"]).contains("upgraded"));
    fs::write(flag.join("go"), "").unwrap();
    let out = waiting.wait();
    assert_eq!((out.code, out.stdout.as_str()), (9, "up\ndown\n"));
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

/// Debian's shim does not know the request; a program that is none is refused. Both go on.
#[test]
fn root_what_cannot_be_upgraded_is_left_alone() {
    let (rig, program) = rig();
    let image = rig.busybox();
    let debians = system_program(SHIM);
    run(&rig, debians.to_str().unwrap(), &image, "foreign");
    run(&rig, program.to_str().unwrap(), &image, "ours");
    assert_eq!(shim(&rig, "foreign")[4], "FOREIGN");
    let out = rig.client.run(["shims", "upgrade", "--program", "/bin/true"]);
    assert_eq!(out.code, 1, "{out:?}");
    let row = |id: &str| rows(&out.stdout).into_iter().find(|row| row[1] == id).unwrap().join(" ");
    assert!(row("foreign").contains("left alone it does not know live upgrades"), "{out:?}");
    assert!(row("ours").contains("failed"), "{out:?}");
    assert!(runs(&shim(&rig, "ours")[2], &program));
    for id in ["foreign", "ours"] {
        rig.client.ok(["tasks", "exec", "--exec-id", "e1", id, "true"]);
        rig.remove(id);
    }
    rig.daemon.assert_clean();
}

/// The daemon does it when it starts, when its configuration says so.
#[test]
fn root_at_the_daemons_start() {
    let section = "[plugins.\"io.containerd.shim.v1.manager\"]\n  upgrade_on_start = true";
    let daemon = Daemon::gantryd().config(section).start();
    let mut rig = Rig::with(daemon, Client::Gantry);
    let program = rig.scratch(SHIM);
    install(&program);
    let image = rig.busybox();
    let log = run(&rig, program.to_str().unwrap(), &image, "c1");
    let pid = shim(&rig, "c1")[2].clone();
    rig.daemon.kill9();
    install(&program);
    assert!(!runs(&pid, &program), "it is the file that was replaced");
    rig.daemon.start_again();
    eventually("the shim runs the new one", || {
        if runs(&pid, &program) { Ok(()) } else { Err("the one before".to_owned()) }
    });
    rig.client.ok(["tasks", "exec", "--exec-id", "e1", "c1", "true"]);
    rig.remove("c1");
    no_line_is_missing(&log);
    rig.daemon.assert_clean();
}
