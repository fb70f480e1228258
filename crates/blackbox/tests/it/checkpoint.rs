//! Checkpoint and restore with criu: a process that counts goes on where it was.
//!
//! The criu is the one that scripts/install-criu.sh unpacks: first on the daemon's PATH, where
//! runc looks for it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use gantry_testkit::{Daemon, DaemonKind, criu_dir, eventually};

use crate::rig::{Client, Rig, rows};

macro_rules! checkpoint_test {
    ($($test:ident, $scenario:ident, $daemon:ident, $client:ident;)*) => {
        $(
            #[test]
            fn $test() {
                let daemon = Daemon::$daemon().path_first(&criu_dir()).start();
                $scenario(&mut Rig::with(daemon, Client::$client));
            }
        )*
    };
}

// Debian's containerd cannot restore what its own ctr has checkpointed ("media type not found").
checkpoint_test! {
    root_image_path, image_path, gantryd, Ctr;
    root_image_path_by_gantry, image_path, gantryd, Gantry;
    root_image_path_on_containerd, image_path, containerd, Ctr;
    root_left_running, left_running, gantryd, Ctr;
    root_left_running_by_gantry, left_running, gantryd, Gantry;
    root_left_running_on_containerd, left_running, containerd, Ctr;
    root_restore, restore, gantryd, Ctr;
    root_restore_by_gantry, restore, gantryd, Gantry;
    // Debian's ctr restores without a terminal, whatever the spec says.
    root_restore_terminal_by_gantry, restore_terminal, gantryd, Gantry;
}

/// Counts in its memory, and tells by its output and a file of the container how far it is. The
/// file also has a word that a process begun anew would not know.
const COUNT: &str = "i=0; word=$(cat /proc/sys/kernel/random/uuid); while :; do i=$((i+1)); \
    echo count-$i; echo $word $i > /new; mv /new /at; sleep 0.05; done";

fn counter(rig: &Rig, image: &str, id: &str) -> PathBuf {
    let log = rig.scratch(&format!("{id}.log"));
    let uri = format!("file://{}", log.display());
    rig.client.ok(["run", "-d", "--log-uri", &uri, image, id, "sh", "-c", COUNT]);
    counts_past(&log, 3);
    log
}

fn count_in(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rfind(|line| line.starts_with("count-"));
    last.and_then(|line| line["count-".len()..].trim().parse().ok()).unwrap_or(0)
}

fn counts_past(log: &Path, number: u64) {
    eventually(&format!("it counts past {number}"), || match count_in(log) {
        at if at > number => Ok(()),
        at => Err(at.to_string()),
    });
}

fn status(rig: &Rig, id: &str) -> Option<String> {
    let list = rows(&rig.client.ok(["tasks", "ls"]));
    list.into_iter().find(|row| row[0] == id).map(|row| row[2].clone())
}

/// runc may not be able to freeze what forks just then, and Debian's shim takes its word for it.
fn checkpoint(rig: &Rig, args: &[&str]) -> String {
    if rig.daemon.kind() == DaemonKind::Gantryd {
        return rig.client.ok(args);
    }
    let mut output = None;
    eventually("the container is frozen", || {
        let out = rig.client.run(args);
        if out.stderr.contains("unable to freeze") {
            return Err(out.stderr);
        }
        output = Some(out);
        Ok(())
    });
    let out = output.expect("it has ended");
    assert_eq!(out.code, 0, "{}", out.stderr);
    out.stdout
}

/// Into a directory of the client's, ending the container.
fn image_path(rig: &mut Rig) {
    let image = rig.busybox();
    let log = counter(rig, &image, "c1");
    let dir = rig.scratch("image");
    fs::create_dir(&dir).unwrap();
    let work = rig.scratch("work");
    fs::create_dir(&work).unwrap();
    let (dir_text, work_text) = (dir.to_str().unwrap(), work.to_str().unwrap());
    let args = ["tasks", "checkpoint", "--exit", "--image-path", dir_text];
    let args: Vec<_> = args.into_iter().chain(["--work-path", work_text, "c1"]).collect();
    checkpoint(rig, &args);
    assert!(dir.join("inventory.img").is_file(), "criu's images are there");
    assert!(work.join("dump.log").is_file(), "and its log");
    eventually("the task has ended", || match status(rig, "c1").as_deref() {
        Some("STOPPED") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let end = count_in(&log);
    assert!(end > 3);
    rig.client.run(["tasks", "delete", "c1"]);
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

/// As an image, while the container goes on.
fn left_running(rig: &mut Rig) {
    let image = rig.busybox();
    let log = counter(rig, &image, "c1");
    let name = checkpoint(rig, &["tasks", "checkpoint", "c1"]);
    let name = name.trim();
    assert!(name.starts_with("containerd.io/checkpoint/c1:"), "{name}");
    counts_past(&log, count_in(&log) + 3);
    assert_eq!(status(rig, "c1").as_deref(), Some("RUNNING"));
    assert!(rig.client.ok(["images", "ls", "-q"]).lines().any(|line| line == name));
    let lines: Vec<u64> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| line["count-".len()..].parse().unwrap())
        .collect();
    assert!(lines.iter().zip(1..).all(|(got, want)| *got == want), "no line is lost: {lines:?}");
    rig.remove("c1");
    rig.client.ok(["images", "delete", name]);
    rig.daemon.assert_clean();
}

/// Names execs apart.
static EXECS: AtomicU32 = AtomicU32::new(0);

/// What the counter of a container has written: its word, and how far it is.
fn at(rig: &Rig, id: &str) -> (String, u64) {
    let exec = format!("e{}", EXECS.fetch_add(1, Ordering::Relaxed));
    let out = rig.client.ok(["tasks", "exec", "--exec-id", &exec, id, "cat", "/at"]);
    let (word, number) = out.trim().split_once(' ').unwrap();
    (word.to_owned(), number.parse().unwrap())
}

/// Everything of a container into an image, and a new container from it that goes on counting.
fn restore(rig: &mut Rig) {
    let image = rig.busybox();
    let log = counter(rig, &image, "c1");
    let name = "docker.io/test/checkpoint:1";
    let args = ["containers", "checkpoint", "--rw", "--image", "--task", "c1", name];
    rig.client.ok(args);
    let limit = count_in(&log);
    assert_eq!(status(rig, "c1").as_deref(), Some("RUNNING"), "it goes on");
    let (word, _) = at(rig, "c1");
    rig.remove("c1");
    let restored = rig.client.spawn(["containers", "restore", "--rw", "--live", "c2", name]);
    restored.wait_for_output("count-");
    let first = restored.stdout().lines().next().unwrap()["count-".len()..].parse::<u64>().unwrap();
    assert!(first > 3, "it did not begin anew: {first}");
    assert!(first <= limit + 1, "it goes on from the checkpoint: {first}, {limit}");
    let (same, from) = at(rig, "c2");
    assert_eq!(same, word, "its memory is what it was");
    eventually("it counts on", || match at(rig, "c2") {
        (_, to) if to > from => Ok(()),
        (_, to) => Err(to.to_string()),
    });
    // A client that is still there removes the task itself.
    rig.client.run(["tasks", "delete", "--force", "c2"]);
    restored.wait();
    rig.client.ok(["containers", "delete", "c2"]);
    rig.client.ok(["images", "delete", name]);
    rig.daemon.assert_clean();
}

/// One with a terminal gets another terminal, and reads what is typed there.
fn restore_terminal(rig: &mut Rig) {
    const ASK: &str = "word=secret; while read line; do echo $line-$word-$((n=n+1)); done";
    let image = rig.busybox();
    let mut typed = rig.client.spawn_on_terminal(["run", "-t", &image, "c1", "sh", "-c", ASK]);
    typed.send("one\n");
    typed.wait_for("one-secret-1");
    let name = "docker.io/test/checkpoint:1";
    rig.client.ok(["containers", "checkpoint", "--rw", "--image", "--task", "c1", name]);
    typed.send("two\n");
    typed.wait_for("two-secret-2");
    // A client that is still there removes the task itself, sooner or later than this.
    rig.client.run(["tasks", "delete", "--force", "c1"]);
    typed.wait();
    rig.client.ok(["containers", "delete", "c1"]);
    let args = ["containers", "restore", "--rw", "--live", "c2", name];
    let mut restored = rig.client.spawn_on_terminal(args);
    restored.send("three\n");
    restored.wait_for("three-secret-2");
    rig.client.run(["tasks", "delete", "--force", "c2"]);
    restored.wait();
    rig.client.ok(["containers", "delete", "c2"]);
    rig.client.ok(["images", "delete", name]);
    rig.daemon.assert_clean();
}

/// What fails is told in the runtime's words, and the container is none the worse.
#[test]
fn root_a_failure_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("criu");
    fs::write(&broken, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let rig = Rig::with(Daemon::gantryd().path_first(dir.path()).start(), Client::Ctr);
    let image = rig.busybox();
    let log = counter(&rig, &image, "c1");
    let stderr = rig.client.fail(["tasks", "checkpoint", "c1"]);
    assert!(stderr.contains("OCI runtime checkpoint failed"), "{stderr}");
    counts_past(&log, count_in(&log) + 3);
    rig.remove("c1");
    rig.daemon.assert_clean();
}
