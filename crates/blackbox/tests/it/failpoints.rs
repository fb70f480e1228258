//! A failure, or a death, at each step that makes something durable: the same commands then
//! succeed, and nothing is leaked.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_failpoint::{LOG_ENV, PLAN_ENV, POINTS};
use gantry_testkit::{Background, Ctr, DaemonKind, Image, eventually, seed};

use crate::doctor::{examine, file_in_layers, spoil_layers, truncate};
use crate::rig::{Client, Rig};

/// What `ctr` does not come to: mounts that are activated, a thousand execs of one task, and a spec
/// that asks for more than the machine gives. `crates/daemon/tests/it/oracle/failpoints.rs` does.
const ELSEWHERE: [&str; 3] = ["mounts.record", "bundle.told-anew", "shim.spec"];

/// Steps of making damaged things whole.
const REPAIRS: [&str; 4] =
    ["doctor.mend", "snapshot.exchange", "snapshot.exchanged", "snapshot.give-up"];

/// Longest a command may take while the daemon lives.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// What happens at a point.
const ACTIONS: [&str; 2] = ["error", "abort"];

/// Each point is tried with one of the actions, drawn by the seed; `GANTRY_FAILPOINTS_ALL=1` asks
/// for both, at the first and at a later time.
fn plans(wanted: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
    let all = std::env::var("GANTRY_FAILPOINTS_ALL").is_ok();
    let mut random = fastrand::Rng::with_seed(seed());
    let points = POINTS.iter().filter(|point| !ELSEWHERE.contains(point) && wanted(point));
    points
        .flat_map(|point| {
            let drawn = ACTIONS[random.usize(..ACTIONS.len())];
            let actions = ACTIONS.iter().filter(move |action| all || **action == drawn);
            let times: &[u32] = if all { &[1, 4] } else { &[1] };
            actions.flat_map(move |action| {
                times.iter().map(move |time| (*point, format!("{point}={action}@{time}")))
            })
        })
        .collect()
}

/// Pull, run, write a blob twice and delete; what fails, fails. A client may wait for ever for a
/// daemon that died.
fn try_all(rig: &mut Rig, reference: &str, id: &str) {
    let commands: [&[&str]; 5] = [
        &["images", "pull", "--plain-http", reference],
        &["run", "--rm", reference, id, "echo", "once"],
        &["content", "ingest", "one"],
        // What it wrote is there by now, and so is dropped.
        &["content", "ingest", "other"],
        &["images", "rm", "--sync", reference],
    ];
    for args in commands {
        let (command, mut input) = rig.client.spawn_with_input(args.iter().copied());
        let _ = std::io::Write::write_all(&mut input, b"written twice");
        drop(input);
        end_or_death(rig, command, &args.join(" "));
    }
}

/// Waits for the end of a command, or that of the daemon.
fn end_or_death(rig: &mut Rig, command: Background, what: &str) {
    let deadline = Instant::now() + COMMAND_MAX;
    while rig.daemon.is_alive() && command.is_running() {
        assert!(Instant::now() < deadline, "{what} hangs, and the daemon lives");
        std::thread::sleep(Duration::from_millis(5));
    }
    command.kill();
}

/// Makes a stopped daemon's disk such that its next start comes to `point`.
fn prepare(rig: &mut Rig, point: &str, reference: &str) {
    let root = rig.daemon.root();
    match point {
        "daemon.identity" => {
            fs::remove_file(root.join("io.containerd.grpc.v1.introspection/uuid")).unwrap();
        }
        "store.recover" | "store.recovered" => {
            let database = root.join("io.containerd.metadata.v1.bolt/meta.redb");
            let file = fs::File::options().write(true).open(database).unwrap();
            file.write_all_at(&[0x5a; 4096], 0).unwrap();
        }
        "content.blob.restore" => {
            // A power cut may take small files whose bytes are in the database.
            rig.daemon.start_again();
            rig.client.ok(["images", "pull", "--plain-http", reference]);
            rig.daemon.kill9();
            fs::remove_file(smallest_blob(&root)).unwrap();
        }
        _ => {}
    }
}

fn smallest_blob(root: &Path) -> PathBuf {
    let blobs = root.join("io.containerd.content.v1.content/blobs/sha256");
    let paths = fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap().path());
    paths.min_by_key(|path| fs::metadata(path).unwrap().len()).expect("there are blobs")
}

#[test]
fn root_every_step_may_fail_or_be_the_last() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let reference = Image::builder().layers(2).build().push(rig.registry(), "failpoints:1");
    let log = rig.scratch("failpoints.log");
    rig.daemon.set_env(LOG_ENV, log.to_str().unwrap());
    let mut missed = Vec::new();
    for (round, (point, plan)) in plans(|point| !REPAIRS.contains(&point)).into_iter().enumerate() {
        let id = format!("c{round}");
        eprintln!("{plan}");
        rig.daemon.stop();
        prepare(&mut rig, point, &reference);
        rig.daemon.set_env(PLAN_ENV, &plan);
        if rig.daemon.try_start_again() {
            try_all(&mut rig, &reference, &id);
            if plan.starts_with("store.dump=") && !plan.ends_with("@4") {
                // The copy is made anew some seconds after the start.
                eventually("the copy is made", || {
                    let text = fs::read_to_string(&log).unwrap_or_default();
                    if text.contains(point) { Ok(()) } else { Err(text) }
                });
            }
        }
        stop(&mut rig);
        rig.daemon.start_again();
        works(&rig.client, &reference, &id);
        rig.daemon.assert_clean();
        if !acted(&log, point) && !plan.ends_with("@4") {
            missed.push(point);
        }
    }
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

/// Ends the daemon, well if it lives, and its plan: also for shims that were started with one.
fn stop(rig: &mut Rig) {
    if rig.daemon.is_alive() {
        rig.daemon.stop();
    } else {
        rig.daemon.kill9();
    }
    rig.daemon.set_env(PLAN_ENV, "");
}

/// A layer is damaged, and with `give-up` what it was made from as well; the repair fails or is cut
/// off at each of its steps, and the next one ends well.
#[test]
fn root_every_step_of_a_repair_may_fail_or_be_the_last() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = Image::builder().layers(3).build();
    let reference = rig.pull(&image, "repairs:1");
    let log = rig.scratch("failpoints.log");
    rig.daemon.set_env(LOG_ENV, log.to_str().unwrap());
    let mut missed = Vec::new();
    for (round, (point, plan)) in plans(|point| REPAIRS.contains(&point)).into_iter().enumerate() {
        eprintln!("{plan}");
        rig.daemon.stop();
        rig.daemon.set_env(PLAN_ENV, &plan);
        rig.daemon.start_again();
        truncate(&file_in_layers(&rig, "layer 1\n"));
        if point == "snapshot.give-up" {
            spoil_layers(&rig);
        }
        let gantry = rig.daemon.gantry();
        let fix = gantry.spawn(["doctor", "--fix", "--deep", "--fifo-dir", "/nonexistent"]);
        end_or_death(&mut rig, fix, "doctor --fix");
        stop(&mut rig);
        rig.daemon.start_again();
        eventually("everything is whole", || {
            let found = examine(&rig, &["--fix", "--deep"]);
            let left: Vec<_> = found.iter().filter(|f| f["fixed"] == false).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
        });
        rig.client.ok(["images", "pull", "--plain-http", &reference]);
        let id = format!("c{round}");
        let out = rig.client.ok(["run", "--rm", &reference, &id, "cat", "/layers/1"]);
        assert_eq!(out, "layer 1\n", "{plan}");
        if !acted(&log, point) && !plan.ends_with("@4") {
            missed.push(point);
        }
    }
    assert!(missed.is_empty(), "never reached: {missed:?}");
    rig.client.ok(["images", "rm", "--sync", &reference]);
    rig.daemon.assert_clean();
}

/// Whether the point did what it was told; forgets it.
fn acted(log: &Path, point: &str) -> bool {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    text.lines().any(|line| line.split(' ').next() == Some(point))
}

/// What was cut off is cleared as a user would, and everything works.
fn works(ctr: &Ctr, reference: &str, id: &str) {
    eventually("what was cut off can be removed", || {
        ctr.run(["tasks", "delete", "--force", id]);
        ctr.run(["containers", "delete", id]);
        ctr.run(["snapshots", "rm", id]);
        let left = ctr.ok(["containers", "ls", "-q"]) + &ctr.ok(["tasks", "ls", "-q"]);
        if left.lines().any(|c| c == id) { Err(left) } else { Ok(()) }
    });
    for digest in ctr.ok(["content", "ls", "-q"]).lines() {
        ctr.run(["content", "rm", digest]);
    }
    // A client that was cut off leaves its lease, which holds what it pulled for a day.
    for lease in ctr.ok(["leases", "ls", "-q"]).lines() {
        ctr.ok(["leases", "delete", "--sync", lease]);
    }
    ctr.ok(["images", "pull", "--plain-http", reference]);
    let check = ctr.ok(["images", "check"]);
    assert!(check.contains(" complete ("), "{check}");
    let out = ctr.ok(["run", "--rm", reference, id, "cat", "/layers/1"]);
    assert_eq!(out, "layer 1\n");
    ctr.ok(["images", "rm", "--sync", reference]);
}
