//! `gantry doctor`: everything orphaned or damaged is told with its reason and mended, and nothing
//! in use is ever taken for it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gantry_testkit::{Ctr, Daemon, DaemonKind, Image, eventually};
use serde_json::Value;

use crate::rig::{Client, Rig};

const CONTENT: &str = "io.containerd.content.v1.content";
const TASKS: &str = "io.containerd.runtime.v2.task";
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";

/// The findings of an examination, as (kind, state, id), and whether all is well.
pub(crate) fn examine(rig: &Rig, flags: &[&str]) -> Vec<Value> {
    let fifo_dir = rig.scratch("fifo");
    let mut args = vec!["doctor", "--format", "json", "--fifo-dir", fifo_dir.to_str().unwrap()];
    args.extend(flags);
    let out = rig.daemon.gantry().run(args);
    let answer: Value = serde_json::from_str(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", out.stdout, out.stderr));
    let findings = answer["findings"].as_array().unwrap().clone();
    let unwell = findings.iter().any(|f| f["fixed"] == false);
    assert_eq!(out.code, if unwell { 2 } else { 0 }, "{}", out.stderr);
    assert!(!answer["unseen"].as_array().unwrap().is_empty());
    findings
}

pub(crate) fn find<'f>(
    findings: &'f [Value],
    kind: &str,
    state: &str,
    id: &str,
) -> Option<&'f Value> {
    findings.iter().find(|f| {
        f["kind"] == kind && f["state"] == state && f["id"].as_str().unwrap().contains(id)
    })
}

/// Files of a layer, by the content of one of them.
pub(crate) fn file_in_layers(rig: &Rig, content: &str) -> PathBuf {
    let mut todo = vec![rig.daemon.root().join(SNAPSHOTS)];
    while let Some(dir) = todo.pop() {
        // The directories of a removed snapshot go meanwhile.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            } else if fs::read(&path).is_ok_and(|bytes| bytes == content.as_bytes()) {
                return path;
            }
        }
    }
    panic!("no layer has a file {content:?}");
}

pub(crate) fn truncate(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.set_len(0).unwrap();
    file.set_modified(time).unwrap();
}

/// Turns bits of every compressed layer; returns how many there are.
pub(crate) fn spoil_layers(rig: &Rig) -> usize {
    let blobs = rig.daemon.root().join(CONTENT).join("blobs/sha256");
    let list = rig.client.ok(["content", "ls"]);
    let is_layer = |line: &&str| line.contains("containerd.io/uncompressed");
    for line in list.lines().filter(is_layer) {
        let hex = line.split_whitespace().next().unwrap().trim_start_matches("sha256:");
        let path = blobs.join(hex);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    list.lines().filter(is_layer).count()
}

/// A process that looks like a shim whose bundle was taken away.
struct Ghost(Child);

impl Ghost {
    fn start(rig: &Rig) -> Self {
        let cwd = rig.scratch("ghost-bundle");
        fs::create_dir(&cwd).unwrap();
        let address = rig.daemon.address();
        let child = Command::new("/bin/sh")
            .arg0("containerd-shim-ghost")
            .args(["-c", "sleep 1000; :", "sh", "-namespace", rig.client.namespace()])
            .args(["-id", "ghost-shim", "-address", address.to_str().unwrap()])
            .current_dir(&cwd)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        fs::remove_dir(&cwd).unwrap();
        Self(child)
    }
}

impl Drop for Ghost {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes one of each orphan; what tells each: kind, and a part of its id.
fn make_orphans(rig: &Rig) -> Vec<(&'static str, String)> {
    let (root, state) = (rig.daemon.root(), rig.daemon.state());
    let ns = rig.client.namespace();
    let mut made = Vec::new();
    fs::create_dir_all(root.join(SNAPSHOTS).join("99999/fs/full")).unwrap();
    made.push(("snapshot", "snapshots/99999".to_owned()));
    // Told by the directory of all snapshots, which the other has in its name as well.
    fs::create_dir_all(root.join(SNAPSHOTS).join(".removed-7/fs/full")).unwrap();
    let digest = gantry_core::Digest::of(b"orphan");
    fs::write(root.join(CONTENT).join("blobs/sha256").join(digest.hex()), "orphan").unwrap();
    made.push(("blob", digest.to_string()));
    let reference = "of-nobody";
    let name = gantry_core::Digest::of(reference.as_bytes());
    let ingest = root.join(CONTENT).join("ingest").join(name.hex());
    fs::create_dir(&ingest).unwrap();
    fs::write(ingest.join("ref"), reference).unwrap();
    fs::write(ingest.join("data"), "half").unwrap();
    made.push(("ingest", reference.to_owned()));
    fs::create_dir_all(state.join(TASKS).join(ns).join("ghost-bundle/rootfs")).unwrap();
    made.push(("bundle", format!("{ns}/ghost-bundle")));
    fs::create_dir_all(root.join(TASKS).join(ns).join("ghost-work")).unwrap();
    made.push(("bundle", format!("{ns}/ghost-work")));
    let mounted = state.join(TASKS).join(ns).join("ghost-mount/rootfs");
    fs::create_dir_all(&mounted).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&mounted).status();
    assert!(mount.unwrap().success());
    made.push(("mount", format!("{ns}/ghost-mount/rootfs")));
    fs::create_dir(root.join("tmpmounts/left")).unwrap();
    made.push(("mount", "tmpmounts/left".to_owned()));
    fs::create_dir_all(state.join("s")).unwrap();
    drop(UnixListener::bind(state.join("s/ghost-socket")).unwrap());
    made.push(("socket", "s/ghost-socket".to_owned()));
    let cgroup = Path::new("/sys/fs/cgroup/pids").join(ns).join("ghost-cgroup");
    fs::create_dir_all(cgroup).unwrap();
    made.push(("cgroup", "ghost-cgroup".to_owned()));
    let fifos = rig.scratch("fifo/17");
    fs::create_dir_all(&fifos).unwrap();
    let fifo = Command::new("mkfifo").arg(fifos.join("ghost-stdout")).status();
    assert!(fifo.unwrap().success());
    made.push(("fifo", "fifo/17".to_owned()));
    made.push(("shim", "ghost-shim".to_owned()));
    made
}

#[test]
fn root_every_orphan_is_told_with_its_reason_and_removed() {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let image = rig.busybox();
    rig.sleeper(&image, "alive");
    assert_eq!(examine(&rig, &["--min-age", "0s"]), Vec::<Value>::new());
    let mut ghost = Ghost::start(&rig);
    let made = make_orphans(&rig);
    let found = examine(&rig, &["--min-age", "0s"]);
    for (kind, id) in &made {
        let finding = find(&found, kind, "orphan", id)
            .unwrap_or_else(|| panic!("{kind} {id} is not in {found:#?}"));
        assert!(finding["reason"].as_str().unwrap().len() > 10, "{finding}");
        assert!(finding["fixed"] == false && finding["error"] == "", "{finding}");
    }
    let unfreed = |f: &&Value| f["reason"].as_str().unwrap().contains("could not be freed");
    assert_eq!(found.iter().filter(unfreed).count(), 1, "{found:#?}");
    // Told again, nothing was touched; young things outside do not count by default.
    let young = examine(&rig, &[]);
    assert!(find(&young, "shim", "orphan", "ghost").is_none(), "{young:#?}");
    assert!(find(&young, "blob", "orphan", "").is_some(), "{young:#?}");

    for finding in examine(&rig, &["--min-age", "0s", "--fix"]) {
        assert!(finding["fixed"] == true, "{finding}");
    }
    eventually("the ghost is gone", || match ghost.0.try_wait() {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(examine(&rig, &["--min-age", "0s"]), Vec::<Value>::new());
    // What is in use was not.
    let out = rig.client.ok(["tasks", "exec", "--exec-id", "e", "alive", "echo", "still here"]);
    assert_eq!(out, "still here\n");
    rig.remove("alive");
    rig.daemon.assert_clean();
}

/// The collector of this daemon sleeps, so that what it would take is there to be told.
#[test]
fn root_a_lease_that_no_collection_took_is_collected() {
    let config = "[plugins.\"io.containerd.gc.v1.scheduler\"]\n  startup_delay = \"10h\"";
    let rig = Rig::with(Daemon::gantryd().config(config).start(), Client::Gantry);
    let image = rig.busybox();
    for (id, year) in [("old", 2020), ("young", 2999)] {
        let label = format!("containerd.io/gc.expire={year}-01-01T00:00:00Z");
        rig.client.ok(["leases", "create", "--id", id, "--expires", "0s", &label]);
    }
    let told = |found: &[Value]| {
        let leases = found.iter().filter(|f| f["kind"] == "lease");
        leases.map(|f| f["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let found = examine(&rig, &[]);
    assert_eq!(told(&found), ["old"], "{found:#?}");
    let finding = find(&found, "lease", "orphan", "old").unwrap();
    assert!(finding["reason"].as_str().unwrap().contains("its time has passed"), "{finding}");
    assert_eq!(finding["namespace"], rig.client.namespace());
    assert!(examine(&rig, &["--fix"]).iter().all(|f| f["fixed"] == true));
    assert_eq!(examine(&rig, &[]), Vec::<Value>::new());
    assert_eq!(rig.client.ok(["leases", "ls", "-q"]).trim(), "young");
    assert_eq!(rig.client.ok(["run", "--rm", &image, "c1", "echo", "here"]), "here\n");
    rig.client.ok(["images", "rm", "--sync", &image]);
    rig.daemon.assert_clean();
}

#[test]
fn root_what_is_damaged_is_made_whole() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = Image::builder().layers(3).build();
    let reference = rig.pull(&image, "doctor:1");
    truncate(&file_in_layers(&rig, "layer 1\n"));
    let found = examine(&rig, &[]);
    let finding = find(&found, "snapshot", "damaged", "sha256:").expect("the damaged layer");
    assert!(finding["reason"].as_str().unwrap().contains("bytes, committed with"), "{finding}");
    let out = rig.client.run(["run", "--rm", &reference, "c0", "true"]);
    assert!(out.stderr.contains("has to be unpacked again"), "{}", out.stderr);
    assert!(examine(&rig, &["--fix"]).iter().all(|f| f["fixed"] == true));
    assert_eq!(examine(&rig, &[]), Vec::<Value>::new());
    let read = ["run", "--rm", &reference, "c1", "cat", "/layers/1"];
    assert_eq!(rig.client.ok(read), "layer 1\n");

    // A blob that is short, and one that only its digest tells; the layer of the one is lost too.
    truncate(&file_in_layers(&rig, "layer 1\n"));
    let spoilt = spoil_layers(&rig);
    assert!(find(&examine(&rig, &[]), "blob", "damaged", "").is_none(), "sizes are right");
    let found = examine(&rig, &["--deep"]);
    let bad = found.iter().filter(|f| f["kind"] == "blob" && f["state"] == "damaged").count();
    assert_eq!(bad, spoilt, "{found:#?}");
    assert!(examine(&rig, &["--deep", "--fix"]).iter().all(|f| f["fixed"] == true));
    assert_eq!(examine(&rig, &["--deep"]), Vec::<Value>::new());
    rig.client.ok(["images", "pull", "--plain-http", &reference]);
    assert_eq!(rig.client.ok(read), "layer 1\n");
    rig.client.ok(["images", "rm", "--sync", &reference]);
    rig.daemon.assert_clean();
}

#[test]
fn root_an_unclean_end_is_verified_and_repaired_by_the_start() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let image = Image::builder().layers(3).build();
    let reference = rig.pull(&image, "unclean:1");
    rig.sleeper(&reference, "alive");
    rig.daemon.kill9();
    let victim = file_in_layers(&rig, "layer 2\n");
    rig.daemon.start_again();
    let verified = |rig: &Rig, times: usize| {
        eventually("the start has verified", || {
            let seen = rig.daemon.log().matches("verified what the last run left").count();
            if seen >= times { Ok(()) } else { Err(format!("{seen} times")) }
        });
    };
    verified(&rig, 1);
    rig.remove("alive");
    rig.daemon.kill9();
    fs::remove_file(&victim).unwrap();
    rig.daemon.start_again();
    verified(&rig, 2);
    // Not looked for: what was verified came before the last start.
    let found = examine(&rig, &["--fix"]);
    assert!(find(&found, "snapshot", "damaged", "sha256:").is_some(), "{found:#?}");

    // Large, for the database has a copy of small ones.
    let other = Image::builder().layers(2).big_layer(1 << 20, 1).build();
    let other = other.push(rig.registry(), "unclean:2");
    rig.client.ok(["images", "pull", "--plain-http", &other]);
    rig.daemon.kill9();
    fs::remove_file(file_in_layers(&rig, "layer 2\n")).unwrap();
    let blob = fs::read_dir(rig.daemon.root().join(CONTENT).join("blobs/sha256"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(|p| fs::metadata(p).unwrap().len())
        .unwrap();
    truncate(&blob);
    // As after a power cut: another boot.
    let marker = rig.daemon.root().join("gantry.running");
    let text = fs::read_to_string(&marker).unwrap();
    let since = text.lines().nth(1).unwrap();
    fs::write(&marker, format!("another-boot\n{since}\n")).unwrap();
    rig.daemon.start_again();
    verified(&rig, 3);
    let found = examine(&rig, &[]);
    let told = |kind| find(&found, kind, "damaged", "sha256:").expect("told after the start");
    for finding in [told("snapshot"), told("blob")] {
        assert!(finding["fixed"] == true, "{finding}");
        assert!(finding["reason"].as_str().unwrap().contains("when the daemon started"));
    }
    let out = rig.client.ok(["run", "--rm", &reference, "c1", "cat", "/layers/2"]);
    assert_eq!(out, "layer 2\n");
    rig.client.ok(["images", "pull", "--plain-http", &other]);
    for name in [&reference, &other] {
        rig.client.ok(["images", "rm", "--sync", name]);
    }
    rig.daemon.assert_clean();
}

#[test]
fn root_a_busy_daemon_is_left_alone() {
    const ROUNDS: usize = 6;
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = Image::builder().layers(3).build();
    let reference = image.push(rig.registry(), "busy:1");
    let base = rig.busybox();
    let work = |ctr: Ctr, n: usize, args: fn(&Ctr, &str, &str), name: String| {
        std::thread::spawn(move || {
            for round in 0..ROUNDS {
                args(&ctr, &name, &format!("w{n}-{round}"));
            }
        })
    };
    let pulls: fn(&Ctr, &str, &str) = |ctr, name, id| {
        ctr.ok(["images", "pull", "--plain-http", name]);
        assert_eq!(ctr.ok(["run", "--rm", name, id, "cat", "/layers/2"]), "layer 2\n");
        ctr.ok(["images", "rm", "--sync", name]);
    };
    let runs: fn(&Ctr, &str, &str) = |ctr, name, id| {
        ctr.ok(["run", "-d", name, id, "sleep", "1000"]);
        assert_eq!(ctr.ok(["tasks", "exec", "--exec-id", "e", id, "echo", "hi"]), "hi\n");
        ctr.ok(["tasks", "delete", "--force", id]);
        ctr.ok(["containers", "delete", id]);
    };
    let workers = [
        work(rig.client.clone(), 0, pulls, reference),
        work(rig.client.clone(), 1, runs, base.clone()),
        work(rig.client.clone(), 2, runs, base),
    ];
    let mut examinations = 0;
    while workers.iter().any(|w| !w.is_finished()) {
        let found = examine(&rig, &["--fix", "--deep", "--min-age", "10s"]);
        assert!(found.is_empty(), "in use, and told: {found:#?}");
        examinations += 1;
    }
    for worker in workers {
        worker.join().expect("nothing was taken away");
    }
    assert!(examinations > 0);
    rig.daemon.assert_clean();
}

#[test]
fn root_a_clean_stop_closes_the_database() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = rig.busybox();
    rig.sleeper(&image, "alive");
    // What keeps a connection, and with it every part of the daemon, in use.
    let events = rig.client.spawn(["events"]);
    let marker = rig.daemon.root().join("gantry.running");
    for _ in 0..3 {
        assert!(marker.exists());
        assert_eq!(rig.daemon.stop(), 0);
        assert!(!marker.exists(), "{}", rig.daemon.log());
        // redb's own mark of a file that was not closed, in the header.
        let database = rig.daemon.root().join("io.containerd.metadata.v1.bolt/meta.redb");
        assert_eq!(fs::read(database).unwrap()[9] & 2, 0, "it is in good order");
        rig.daemon.start_again();
    }
    events.kill();
    rig.remove("alive");
    rig.daemon.assert_clean();
}
