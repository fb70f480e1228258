//! `kill -9` of the daemon at random moments of pull, run and delete: it repairs itself alone, the
//! same command then succeeds, and nothing is leaked.

use std::time::Duration;

use gantry_testkit::{Counters, Ctr, DaemonKind, Image, eventually, seed};

use crate::rig::{Client, Rig};

/// Kills per test; `GANTRY_CRASH_KILLS` asks for more (`make crash`: a thousand in all).
fn kills() -> u32 {
    std::env::var("GANTRY_CRASH_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(16)
}

/// Checks that nothing is left, and that what there is of each thing does not grow with the work
/// done: descriptors above all, which no restart hides. `work` does a little of everything and
/// takes it away again.
fn count_leaks(rig: &Rig, mut work: impl FnMut(&Ctr, u32)) {
    /// More descriptors than before are connections and files that are just being closed.
    const FDS_SLACK: usize = 4;
    rig.daemon.assert_clean();
    work(&rig.client, 0);
    rig.daemon.assert_clean();
    let before = rig.daemon.counters();
    for round in 1..6 {
        work(&rig.client, round);
    }
    rig.daemon.assert_clean();
    eventually("what there is does not grow", || {
        let after = rig.daemon.counters();
        let fds = after.fds.saturating_sub(before.fds) <= FDS_SLACK;
        let others = |counters: Counters| Counters { fds: 0, ..counters };
        if fds && others(after) == others(before) {
            eprintln!("left after {} kills: {after:?}", kills());
            return Ok(());
        }
        Err(format!("{before:?} before, {after:?} after"))
    });
}

/// Runs `args` and kills the daemon at a random moment of it, again and again; `recover` must then
/// bring the daemon to where it was.
fn storm(
    rig: &mut Rig,
    longest: Duration,
    mut args: impl FnMut(u32) -> Vec<String>,
    mut recover: impl FnMut(&Ctr, u32),
) {
    let mut random = fastrand::Rng::with_seed(seed());
    for round in 0..kills() {
        let command = rig.client.spawn(args(round));
        let delay = random.u64(0..=u64::try_from(longest.as_micros()).unwrap());
        std::thread::sleep(Duration::from_micros(delay));
        rig.daemon.kill9();
        command.kill();
        rig.daemon.start_again();
        recover(&rig.client, round);
    }
}

fn strings<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.iter().map(|a| (*a).to_owned()).collect()
}

#[test]
fn root_killed_while_pulling() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = Image::builder().layers(4).big_layer(8 << 20, 1).build();
    let reference = image.push(rig.registry(), "crash:1");
    let pull = reference.clone();
    storm(
        &mut rig,
        Duration::from_millis(900),
        |_| strings(["images", "pull", "--plain-http", &pull]),
        |ctr, round| {
            ctr.ok(["images", "pull", "--plain-http", &reference]);
            let id = format!("c{round}");
            let out = ctr.ok(["run", "--rm", &reference, &id, "cat", "/layers/3"]);
            assert_eq!(out, "layer 3\n");
            assert!(ctr.ok(["images", "check"]).contains("complete (6/6)"));
            ctr.ok(["images", "rm", "--sync", &reference]);
        },
    );
    let active = rig.client.ok(["content", "active"]);
    assert!(active.lines().count() <= 1, "no ingest is left, but:\n{active}");
    count_leaks(&rig, |ctr, _| {
        ctr.ok(["images", "pull", "--plain-http", &reference]);
        ctr.ok(["images", "rm", "--sync", &reference]);
    });
}

#[test]
fn root_killed_while_running() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = rig.busybox();
    let name = image.clone();
    storm(
        &mut rig,
        Duration::from_millis(400),
        |round| {
            let id = format!("c{round}");
            let mut args = strings(["run", "--rm", &name]);
            args.extend(strings([&id, "sh", "-c", "echo started; sleep 0.1; exit 3"]));
            args
        },
        |ctr, round| {
            let id = format!("c{round}");
            clear(ctr, &id);
            let out = ctr.run(["run", "--rm", &image, &id, "sh", "-c", "echo again; exit 3"]);
            assert_eq!((out.stdout.as_str(), out.code), ("again\n", 3), "{}", out.stderr);
        },
    );
    let image = rig.busybox();
    count_leaks(&rig, |ctr, round| {
        ctr.ok(["run", "--rm", &image, &format!("l{round}"), "true"]);
    });
}

#[test]
fn root_killed_while_deleting() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = rig.busybox();
    rig.sleeper(&image, "c0");
    storm(
        &mut rig,
        Duration::from_millis(200),
        |round| strings(["tasks", "delete", "--force", &format!("c{round}")]),
        |ctr, round| {
            clear(ctr, &format!("c{round}"));
            ctr.ok(["run", "-d", &image, &format!("c{}", round + 1), "sleep", "1000"]);
        },
    );
    let last = format!("c{}", kills());
    rig.remove(&last);
    rig.daemon.assert_clean();
}

/// Anything at any time: no command is given the time to be alone.
#[test]
fn root_killed_at_random() {
    let mut rig = Rig::new(DaemonKind::Gantryd, Client::Ctr);
    let image = rig.busybox();
    let other = Image::builder().layers(3).build().push(rig.registry(), "random:1");
    let mut random = fastrand::Rng::with_seed(seed());
    for round in 0..kills() {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let commands: [&[&str]; 7] = [
            &["images", "pull", "--plain-http", &other],
            &["run", "--rm", &image, &a, "sleep", "0.1"],
            &["run", "-d", &image, &b, "sleep", "1000"],
            &["images", "rm", "--sync", &other],
            &["snapshots", "prepare", &a],
            &["leases", "create", "--id", &a],
            &["content", "fetch", "--plain-http", &other],
        ];
        let running: Vec<_> = (0..3)
            .map(|_| commands[random.usize(..commands.len())])
            .map(|args| rig.client.spawn(args.iter().copied()))
            .collect();
        std::thread::sleep(Duration::from_micros(random.u64(..600_000)));
        rig.daemon.kill9();
        for command in running {
            command.kill();
        }
        rig.daemon.start_again();
        for id in [&a, &b] {
            clear(&rig.client, id);
            rig.client.run(["leases", "delete", id]);
        }
        let out = rig.client.run(["run", "--rm", &image, "check", "echo", "works"]);
        assert_eq!(out.stdout, "works\n", "{}", out.stderr);
    }
    rig.client.run(["images", "rm", "--sync", &other]);
    for line in rig.client.ok(["leases", "ls", "-q"]).lines() {
        rig.client.run(["leases", "delete", "--sync", line]);
    }
    count_leaks(&rig, |ctr, round| {
        ctr.ok(["images", "pull", "--plain-http", &other]);
        ctr.ok(["run", "--rm", &other, &format!("l{round}"), "true"]);
        ctr.ok(["images", "rm", "--sync", &other]);
    });
}

/// Removes whatever a cut-off command left under `id`, as a user would.
fn clear(ctr: &Ctr, id: &str) {
    eventually("the container can be removed", || {
        let _ = ctr.run(["tasks", "delete", "--force", id]);
        let tasks = ctr.run(["tasks", "ls", "-q"]);
        if tasks.code != 0 || tasks.stdout.lines().any(|t| t == id) {
            return Err(format!("the task is still there: {}", tasks.stderr));
        }
        let _ = ctr.run(["containers", "delete", id]);
        let _ = ctr.run(["snapshots", "rm", id]);
        let left = ctr.ok(["containers", "ls", "-q"]);
        if left.lines().any(|c| c == id) {
            Err("the container is still there".to_owned())
        } else {
            Ok(())
        }
    });
}
