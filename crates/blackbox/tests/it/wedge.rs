//! Nothing wedges: one part that does not answer costs its own callers their deadline, and nobody
//! else anything.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use gantry_testkit::{
    Background, Daemon, Image, Layer, Registry, Reply, StubRegistry, eventually, eventually_within,
};
use rustix::process::Signal;

use crate::rig::{Client, Rig, rows};

/// What the daemon's own memory may grow by under any load here, in KiB: buffers of connections
/// and pools that reach their size once.
const GROWTH_MAX_KIB: u64 = 24 << 10;

fn gantryd(config: &str) -> Rig {
    Rig::with(Daemon::gantryd().config(config).start(), Client::Gantry)
}

/// All that other clients do: run, exec, kill, delete, pull, lists, records, garbage collection.
fn everything_else_works(rig: &Rig, registry: &Registry, image: &str, round: usize) {
    let id = |name: &str| format!("{name}{round}");
    let begun = Instant::now();
    assert_eq!(rig.client.ok(["run", "--rm", image, &id("r"), "echo", "hi"]), "hi\n");
    rig.sleeper(image, &id("s"));
    let out = rig.client.ok(["tasks", "exec", "--exec-id", "e1", &id("s"), "echo", "there"]);
    assert_eq!(out, "there\n");
    let fresh = Image::builder()
        .layer(Layer::new().file("etc/fresh", 0o644, format!("round {round}")))
        .build();
    let reference = fresh.push(registry, &id("fresh"));
    rig.client.ok(["images", "pull", "--plain-http", &reference]);
    rig.client.ok(["images", "rm", "--sync", &reference]);
    let list = rig.client.ok(["tasks", "ls"]);
    let row = rows(&list).into_iter().find(|row| row[0] == id("s"));
    assert_eq!(row.expect("the new task is listed")[2], "RUNNING", "{list}");
    assert!(rig.client.ok(["containers", "ls", "-q"]).contains(&id("s")));
    rig.client.ok(["snapshots", "ls"]);
    rig.client.ok(["content", "ls", "-q"]);
    rig.remove(&id("s"));
    eprintln!("round {round} of everything else: {:?}", begun.elapsed());
}

/// Runs `load` with the part stuck, twice, so that memory has reached its size after the first.
fn memory_stays_flat(rig: &Rig, mut load: impl FnMut(usize)) {
    load(0);
    let before = rig.daemon.memory_kib();
    for round in 1..3 {
        load(round);
    }
    let after = rig.daemon.memory_kib();
    eprintln!("memory: {before} KiB, then {after} KiB");
    assert!(after < before + GROWTH_MAX_KIB, "{before} KiB grew to {after} KiB");
}

#[test]
fn root_a_frozen_shim_holds_up_nobody_else() {
    let mut rig = gantryd("");
    let image = rig.busybox();
    for id in ["stuck", "fine"] {
        rig.sleeper(&image, id);
    }
    let registry = Registry::start();
    rig.daemon.signal_shim("stuck", Signal::STOP);
    // Callers of the stuck one, of all kinds; they wait.
    let waiting: Vec<Background> = [
        vec!["tasks", "exec", "--exec-id", "x", "stuck", "true"],
        vec!["tasks", "kill", "--signal", "SIGTERM", "stuck"],
        vec!["tasks", "pause", "stuck"],
        vec!["tasks", "metrics", "stuck"],
    ]
    .into_iter()
    .map(|args| rig.client.spawn(args))
    .collect();
    memory_stays_flat(&rig, |round| everything_else_works(&rig, &registry, &image, round));
    let list = rig.client.ok(["tasks", "ls"]);
    let status = |id: &str| {
        let row = rows(&list).into_iter().find(|row| row[0] == id);
        row.unwrap_or_else(|| panic!("{id} in\n{list}"))[2].clone()
    };
    assert_eq!((status("stuck"), status("fine")), ("UNKNOWN".into(), "RUNNING".into()));
    // The same after a restart, which does not wait for it.
    drop(waiting);
    rig.daemon.restart();
    everything_else_works(&rig, &registry, &image, 9);
    rig.client.ok(["tasks", "exec", "--exec-id", "e2", "fine", "true"]);

    rig.daemon.signal_shim("stuck", Signal::CONT);
    eventually("the thawed task answers", || {
        // What was sent while it was frozen may have paused it, and may have asked it to end.
        rig.client.run(["tasks", "resume", "stuck"]);
        let list = rig.client.ok(["tasks", "ls"]);
        if list.contains("UNKNOWN") || list.contains("PAUSED") { Err(list) } else { Ok(()) }
    });
    rig.remove("stuck");
    rig.remove("fine");
    rig.daemon.assert_clean();
}

/// Takes connections and never says a word.
struct BlackHole {
    path: String,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    taker: Option<std::thread::JoinHandle<usize>>,
}

impl BlackHole {
    fn open(path: &std::path::Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let taker = std::thread::spawn(move || {
            let mut taken = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(std::sync::atomic::Ordering::Acquire) {
                    break;
                }
                taken.push(stream);
            }
            taken.len()
        });
        Self { path: path.to_str().unwrap().to_owned(), stop, taker: Some(taker) }
    }

    /// Ends all connections; returns how many there were.
    fn close(mut self) -> usize {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        let _ = std::os::unix::net::UnixStream::connect(&self.path);
        let taken = self.taker.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
        taken
    }
}

#[test]
fn root_a_plugin_that_never_answers_holds_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let hole = BlackHole::open(&dir.path().join("hole.sock"));
    let config = format!(
        "[proxy_plugins.hole]\n  type = \"snapshot\"\n  address = \"{}\"\n  \
         [proxy_plugins.hole.exports]\n    root = \"/elsewhere\"\n",
        hole.path
    );
    let rig = gantryd(&config);
    let plugins = rig.client.ok(["plugins", "ls"]);
    let row = rows(&plugins).into_iter().find(|row| row[1] == "hole").expect("it is listed");
    assert_eq!(
        (row[0].as_str(), row.last().unwrap().as_str()),
        ("io.containerd.snapshotter.v1", "ok")
    );
    let image = rig.busybox();
    let registry = Registry::start();
    let prepare =
        |key: &str| rig.client.spawn(["snapshots", "--snapshotter", "hole", "prepare", key]);
    let mut waiting: Vec<Background> = Vec::new();
    memory_stays_flat(&rig, |round| {
        waiting.extend((0..8).map(|n| prepare(&format!("k{round}-{n}"))));
        everything_else_works(&rig, &registry, &image, round);
    });
    assert!(waiting.iter().all(Background::is_running), "they wait for the plugin");
    // Its way back is their error, which names it.
    assert!(hole.close() > 0, "it was asked");
    for caller in waiting {
        let out = caller.wait();
        assert_ne!(out.code, 0);
        assert!(out.stderr.contains("proxy plugin \"hole\""), "{}", out.stderr);
    }
    let out = rig.client.fail(["snapshots", "--snapshotter", "hole", "prepare", "again"]);
    assert!(out.contains("proxy plugin \"hole\"") && out.contains("unavailable"), "{out}");
    rig.client.ok(["images", "rm", "--sync", &image]);
    rig.daemon.assert_clean();
}

#[test]
fn root_a_client_that_reads_no_events_holds_up_nobody_else() {
    let rig = gantryd("");
    let image = rig.busybox();
    let registry = Registry::start();
    let silent: Vec<Background> = (0..4).map(|_| rig.client.spawn(["events"])).collect();
    eventually("the subscriptions are live", || {
        rig.client.ok(["namespaces", "label", rig.client.namespace(), "tick=1"]);
        match silent.iter().all(|events| events.stdout().contains("/namespaces/update")) {
            true => Ok(()),
            false => Err(String::new()),
        }
    });
    silent.iter().for_each(|events| events.signal(Signal::STOP));
    memory_stays_flat(&rig, |round| everything_else_works(&rig, &registry, &image, round));
    silent.iter().for_each(|events| events.signal(Signal::CONT));
    for events in &silent {
        events.wait_for_output("s2");
    }
    drop(silent);
    rig.daemon.assert_clean();
}

#[test]
fn root_a_registry_that_stalls_holds_up_nobody_else() {
    let rig = gantryd("");
    let image = rig.busybox();
    let registry = Registry::start();
    let stub = StubRegistry::start();
    let slow = Image::builder().layer(Layer::new().file("slow", 0o644, "slow")).build();
    let reference = stub.serve_image(&slow, "slow", "1");
    let layer = slow.manifest()["layers"][1]["digest"].as_str().unwrap().to_owned();
    let mut stalled = Reply::ok("application/octet-stream", vec![0; 4096]);
    stalled.delay = Duration::from_secs(3600);
    stub.reply(&format!("/v2/slow/blobs/{layer}"), stalled);
    let pull = |_| rig.client.spawn(["images", "pull", "--plain-http", &reference]);
    let waiting: Vec<Background> = (0..4).map(pull).collect();
    memory_stays_flat(&rig, |round| everything_else_works(&rig, &registry, &image, round));
    assert!(waiting.iter().all(Background::is_running), "they wait for the registry");
    drop(waiting);
    rig.client.ok(["images", "rm", "--sync", &image]);
    rig.daemon.assert_clean();
}

#[test]
fn root_output_that_nobody_reads_holds_up_nobody_else() {
    let rig = gantryd("");
    let image = rig.busybox();
    let registry = Registry::start();
    // A client that is frozen leaves FIFOs that are open and full.
    let noisy = rig.client.spawn(["run", &image, "noisy", "sh", "-c", "yes"]);
    noisy.wait_for_output("y\ny\n");
    noisy.signal(Signal::STOP);
    memory_stays_flat(&rig, |round| everything_else_works(&rig, &registry, &image, round));
    rig.client.ok(["tasks", "exec", "--exec-id", "e1", "noisy", "true"]);
    rig.client.ok(["tasks", "kill", "--signal", "SIGKILL", "noisy"]);
    rig.client.ok(["tasks", "delete", "--force", "noisy"]);
    drop(noisy);
    rig.client.ok(["containers", "delete", "noisy"]);
    rig.daemon.assert_clean();
}

/// Writers of blobs that are held open. Each costs the daemon about a mebibyte, the buffer of the
/// largest message it has sent.
const WRITERS: usize = 16;

/// What one writes in each round of the load.
const WRITTEN: usize = 3 << 20;

/// Clients that begin to write a blob and never end it. Some write on, a few mebibytes now and then;
/// the others are frozen, so that not even their connection is served.
#[test]
fn root_blobs_that_are_never_finished_hold_up_nobody_else() {
    let rig = gantryd("");
    let image = rig.busybox();
    let registry = Registry::start();
    let some = vec![7; WRITTEN];
    let mut held: Vec<_> = (0..WRITERS)
        .map(|n| {
            let reference = format!("held-{n}");
            let ingest = ["content", "ingest", reference.as_str()];
            let (writer, input) = rig.client.spawn_with_input(ingest);
            (reference, writer, input, 0)
        })
        .collect();
    memory_stays_flat(&rig, |round| {
        for (n, (_, _, input, written)) in held.iter_mut().enumerate() {
            if round == 0 || n % 2 == 0 {
                input.write_all(&some).unwrap();
                *written += WRITTEN >> 20;
            }
        }
        let want: Vec<_> = held.iter().map(|(name, .., mib)| (name, format!("{mib}MiB"))).collect();
        eventually("their bytes are with the daemon", || {
            let active = rig.client.ok(["content", "active"]);
            let there = rows(&active);
            let has = |(name, mib): &(&String, String)| {
                there.iter().any(|row| row[0] == **name && row[1] == *mib)
            };
            if want.iter().all(has) { Ok(()) } else { Err(active) }
        });
        held.iter().skip(1).step_by(2).for_each(|(_, writer, ..)| writer.signal(Signal::STOP));
        everything_else_works(&rig, &registry, &image, round);
    });
    // Each reference has one writer, and whoever else wants it is told at once.
    let out = rig.client.fail(["content", "ingest", held[1].0.as_str()]);
    assert!(out.contains("locked") && out.contains("unavailable"), "{out}");
    held.iter().for_each(|(_, writer, ..)| writer.signal(Signal::CONT));
    for (n, (reference, writer, mut input, _)) in held.into_iter().enumerate() {
        assert!(writer.is_running(), "{reference} is still being written");
        // Blobs of their own.
        input.write_all(&n.to_be_bytes()).unwrap();
        drop(input);
        let out = writer.wait();
        assert_eq!(out.code, 0, "{reference}: {}", out.stderr);
    }
    assert_eq!(rows(&rig.client.ok(["content", "active"])).len(), 0);
    rig.client.ok(["images", "rm", "--sync", &image]);
    rig.daemon.assert_clean();
}

/// Shims in the start-up test; `GANTRY_WEDGE_SHIMS=200` is what the promise speaks of.
const SHIMS: usize = 24;

/// Of them frozen.
const FROZEN: usize = 5;

/// Generous: this machine does other things as well. What was measured is printed.
const START_MAX: Duration = Duration::from_secs(20);

#[test]
fn root_start_up_does_not_wait_for_frozen_shims() {
    let mut rig = gantryd("");
    let image = rig.busybox();
    let shims = std::env::var("GANTRY_WEDGE_SHIMS").ok().and_then(|n| n.parse().ok());
    let ids: Vec<String> = (0..shims.unwrap_or(SHIMS)).map(|n| format!("c{n}")).collect();
    for some in ids.chunks(8) {
        let started: Vec<Background> = some
            .iter()
            .map(|id| rig.client.spawn(["run", "-d", &image, id, "sleep", "1000"]))
            .collect();
        for run in started {
            let out = run.wait();
            assert_eq!(out.code, 0, "{}", out.stderr);
        }
    }
    let (frozen, running) = ids.split_at(FROZEN);
    frozen.iter().for_each(|id| rig.daemon.signal_shim(id, Signal::STOP));
    rig.daemon.kill9();
    let begun = Instant::now();
    rig.daemon.start_again();
    rig.client.ok(["version"]);
    let up = begun.elapsed();
    eprintln!("{} shims, {FROZEN} frozen: answers after {up:?}", ids.len());
    assert!(up < START_MAX, "{up:?}");
    for id in running.iter().take(3) {
        rig.client.ok(["tasks", "exec", "--exec-id", "e1", id, "true"]);
    }
    eventually_within(Duration::from_secs(60), "all are listed", || {
        let list = rig.client.ok(["tasks", "ls"]);
        let counts = (list.matches("RUNNING").count(), list.matches("UNKNOWN").count());
        if counts == (running.len(), FROZEN) { Ok(()) } else { Err(list) }
    });
    frozen.iter().for_each(|id| rig.daemon.signal_shim(id, Signal::CONT));
    for some in ids.chunks(8) {
        let deleted: Vec<Background> =
            some.iter().map(|id| rig.client.spawn(["tasks", "delete", "--force", id])).collect();
        for (id, delete) in some.iter().zip(deleted) {
            let out = delete.wait();
            assert_eq!(out.code, 0, "{id}: {}", out.stderr);
            rig.client.ok(["containers", "delete", id]);
        }
    }
    rig.daemon.assert_clean();
}
