//! Facts are told once: exits, kills for memory and deletions, whatever becomes of the daemon.

use std::fs;

use gantry_testkit::{Background, Ctr, Daemon, eventually, seed};
use rustix::process::Signal;

use crate::rig::{Client, Rig};

/// Subscribes to the events of tasks and waits until the subscription is live.
fn subscribe(client: &Ctr) -> Background {
    let events = client.spawn(["events"]);
    eventually("the subscription is live", || {
        client.ok(["namespaces", "label", client.namespace(), "tick=1"]);
        if events.stdout().contains("/namespaces/update") { Ok(()) } else { Err(events.stderr()) }
    });
    events
}

/// The facts of one task among events: topic and process, in order.
fn facts(events: &str, task: &str) -> Vec<String> {
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let lines = events.lines().filter(|l| field(l, "container_id").is_some_and(|id| id == task));
    lines
        .filter_map(|line| {
            let process = field(line, "id").unwrap_or_default();
            ["/tasks/exit", "/tasks/oom", "/tasks/delete"]
                .into_iter()
                .find(|topic| line.contains(topic))
                .map(|topic| format!("{} {process}", topic.trim_start_matches("/tasks/")))
        })
        .map(|fact| fact.trim().to_owned())
        .collect()
}

/// A container that ends when the file `go` appears in the directory it returns, as does the exec
/// `e1` in it, a moment before.
fn waiter(rig: &Rig, image: &str, id: &str) -> std::path::PathBuf {
    let dir = rig.scratch(&format!("shared-{id}"));
    fs::create_dir(&dir).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", dir.display());
    let script = "while [ ! -e /mnt/exec-gone ]; do sleep 0.02; done; touch /mnt/gone; exit 23";
    rig.client.ok(["run", "-d", "--mount", &mount, image, id, "sh", "-c", script]);
    dir
}

/// Starts the exec of [`waiter`]; it is not deleted, for its client is killed.
fn exec(rig: &Rig, id: &str) {
    let script = "while [ ! -e /mnt/go ]; do sleep 0.02; done; touch /mnt/exec-gone; exit 5";
    let exec = rig.client.spawn(["tasks", "exec", "--exec-id", "e1", id, "sh", "-c", script]);
    eventually("the exec runs", || {
        let list = rig.client.ok(["tasks", "ps", id]);
        if list.contains("e1") { Ok(()) } else { Err(list) }
    });
    exec.kill();
}

fn wait_for(path: &std::path::Path) {
    eventually(&format!("{} is there", path.display()), || {
        if path.exists() { Ok(()) } else { Err(String::new()) }
    });
}

/// How many seconds after its start the daemon shows what happened without it is the exchange's
/// to say; a subscription made at once is within.
fn told_after_the_restart(rig: &mut Rig, end: impl Fn(&mut Rig)) {
    let image = rig.busybox();
    let dir = waiter(rig, &image, "c1");
    exec(rig, "c1");
    end(rig);
    fs::write(dir.join("go"), "").unwrap();
    wait_for(&dir.join("gone"));
    wait_for(&rig.daemon.bundle("c1").join("exit-c1.json"));
    rig.daemon.kill9();
    rig.daemon.start_again();
    let events = subscribe(&rig.client);
    rig.client.run(["tasks", "delete", "c1"]);
    events.wait_for_output("/tasks/delete");
    // One more task's life: whatever was to come twice has come by then.
    rig.client.ok(["run", "--rm", &image, "c2", "true"]);
    let want = ["exit c2", "delete"];
    eventually("the second task's facts", || {
        let seen = facts(&events.stdout(), "c2");
        if seen == want { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let seen = events.kill().stdout;
    assert_eq!(facts(&seen, "c1"), ["exit e1", "exit c1", "delete"], "{seen}");
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

fn gantryd() -> Rig {
    Rig::with(Daemon::gantryd().start(), Client::Gantry)
}

#[test]
fn root_an_exit_without_a_daemon_is_told_once() {
    told_after_the_restart(&mut gantryd(), |rig| rig.daemon.kill9());
}

#[test]
fn root_an_exit_that_a_daemon_had_not_taken_when_it_was_killed_is_told_once() {
    told_after_the_restart(&mut gantryd(), |rig| rig.daemon.signal(Signal::STOP));
}

/// The shim dies as well, with its events: what it left on disk is what is told.
#[test]
fn root_the_end_of_a_shim_without_a_daemon_is_told_once() {
    let mut rig = gantryd();
    let image = rig.busybox();
    let dir = waiter(&rig, &image, "c1");
    exec(&rig, "c1");
    rig.daemon.kill9();
    fs::write(dir.join("go"), "").unwrap();
    wait_for(&dir.join("gone"));
    wait_for(&rig.daemon.bundle("c1").join("exit-c1.json"));
    rig.daemon.signal_shim("c1", Signal::KILL);
    rig.daemon.start_again();
    let events = subscribe(&rig.client);
    events.wait_for_output("/tasks/delete");
    // Nothing comes again after the next restart.
    rig.daemon.restart();
    let after = subscribe(&rig.client);
    rig.client.ok(["run", "--rm", &image, "c2", "true"]);
    after.wait_for_output("/tasks/delete");
    assert_eq!(facts(&events.stdout(), "c1"), ["exit e1", "exit c1", "delete"]);
    assert_eq!(facts(&after.stdout(), "c1"), Vec::<String>::new());
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

/// Daemons that are killed while no client has found out yet that they are back: what they had
/// to tell is told by the one that lives.
#[test]
fn root_an_exit_is_told_once_by_the_first_daemon_that_has_a_client() {
    let mut rig = gantryd();
    let image = rig.busybox();
    let published = |rig: &Rig, id: &str| {
        let told = rig.daemon.bundle(id).join("told");
        eventually("the exit is published", || {
            let text = fs::read_to_string(&told).unwrap_or_default();
            if text.lines().any(|line| line == "exit") { Ok(()) } else { Err(text) }
        });
    };
    let dir = waiter(&rig, &image, "c1");
    exec(&rig, "c1");
    rig.daemon.kill9();
    fs::write(dir.join("go"), "").unwrap();
    wait_for(&rig.daemon.bundle("c1").join("exit-c1.json"));
    for _ in 0..2 {
        rig.daemon.start_again();
        published(&rig, "c1");
        rig.daemon.kill9();
    }
    // Cut off in the very step that keeps it for the next one.
    rig.daemon.set_env("GANTRY_FAILPOINTS", "events.recovered=abort@1");
    assert!(!rig.daemon.try_start_again(), "it ends");
    rig.daemon.set_env("GANTRY_FAILPOINTS", "");
    rig.daemon.start_again();
    let events = subscribe(&rig.client);
    events.wait_for_output("\"id\":\"c1\"");
    // The next one has nothing to tell of it.
    rig.daemon.kill9();
    rig.daemon.start_again();
    let after = subscribe(&rig.client);
    rig.client.ok(["tasks", "delete", "--force", "c1"]);
    after.wait_for_output("/tasks/delete");
    assert_eq!(facts(&events.stdout(), "c1"), ["exit e1", "exit c1"]);
    assert_eq!(facts(&after.stdout(), "c1"), ["delete"]);
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

/// The whole memory of a container is eaten while there is no daemon.
#[test]
fn root_running_out_of_memory_without_a_daemon_is_told_once() {
    let mut rig = gantryd();
    let image = rig.busybox();
    let dir = rig.scratch("shared");
    fs::create_dir(&dir).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", dir.display());
    let script = "while [ ! -e /mnt/go ]; do sleep 0.02; done; exec tail /dev/zero";
    let limit = (16 << 20).to_string();
    let limited = ["run", "-d", "--memory-limit", &limit, "--mount", &mount];
    rig.client.ok(limited.into_iter().chain([image.as_str(), "c1", "sh", "-c", script]));
    rig.daemon.kill9();
    fs::write(dir.join("go"), "").unwrap();
    wait_for(&rig.daemon.bundle("c1").join("exit-c1.json"));
    rig.daemon.start_again();
    let events = subscribe(&rig.client);
    events.wait_for_output("/tasks/exit");
    let list = rig.client.ok(["tasks", "ls"]);
    assert!(list.contains("STOPPED"), "{list}");
    rig.client.run(["tasks", "delete", "c1"]);
    events.wait_for_output("/tasks/delete");
    // Not by the next daemon either.
    rig.daemon.restart();
    let after = subscribe(&rig.client);
    rig.client.ok(["run", "--rm", &image, "c2", "true"]);
    after.wait_for_output("/tasks/delete");
    let (seen, later) = (events.kill().stdout, after.kill().stdout);
    assert_eq!(facts(&seen, "c1"), ["oom", "exit c1", "delete"], "{seen}");
    assert!(seen.contains("\"exit_status\":137"), "{seen}");
    assert_eq!(facts(&later, "c1"), Vec::<String>::new(), "{later}");
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

/// Killed between the client's socket and the journal, the one moment after which a fact comes
/// twice: it comes word for word, whoever tells it then, so that a client can tell that it is one.
#[test]
fn root_a_fact_that_comes_twice_comes_word_for_word() {
    let mut rig = gantryd();
    let image = rig.busybox();
    for (id, shim_dies) in [("c1", false), ("c2", true)] {
        rig.daemon.stop();
        rig.daemon.set_env("GANTRY_FAILPOINTS", "bundle.told=abort@1");
        rig.daemon.start_again();
        rig.sleeper(&image, id);
        let before = subscribe(&rig.client);
        let kill = rig.client.spawn(["tasks", "kill", "--signal", "SIGKILL", id]);
        eventually("the daemon ends", || {
            if rig.daemon.is_alive() { Err(String::new()) } else { Ok(()) }
        });
        kill.kill();
        rig.daemon.kill9();
        if shim_dies {
            rig.daemon.signal_shim(id, Signal::KILL);
        }
        rig.daemon.set_env("GANTRY_FAILPOINTS", "");
        rig.daemon.start_again();
        let after = subscribe(&rig.client);
        after.wait_for_output("/tasks/exit");
        let told = |events: &Background| {
            let seen = events.stdout();
            let line = seen.lines().find(|line| line.contains("/tasks/exit")).map(str::to_owned);
            line.and_then(|line| line.split_once("/tasks/").map(|(_, what)| what.to_owned()))
        };
        assert!(told(&before).is_some(), "{}", before.stdout());
        assert_eq!(told(&before), told(&after), "the shim dies: {shim_dies}");
        rig.client.run(["tasks", "delete", id]);
        rig.client.ok(["containers", "delete", id]);
    }
    rig.daemon.assert_clean();
}

/// Rounds of the random test; `GANTRY_JOURNAL_ROUNDS` makes it longer.
const ROUNDS: u64 = 6;

/// Containers that end in one round.
const ENDING: usize = 4;

/// The daemon is killed at a random moment while containers end. A client that goes on reading
/// sees every exit; twice only one that was being handed over at that very moment.
#[test]
fn root_killed_at_random_moments_no_exit_is_lost() {
    let mut rig = gantryd();
    let image = rig.busybox();
    let rounds = std::env::var("GANTRY_JOURNAL_ROUNDS").ok().and_then(|n| n.parse().ok());
    let rounds: u64 = rounds.unwrap_or(ROUNDS);
    let seed = seed();
    let (mut random, mut repeated) = (seed, 0);
    for round in 0..rounds {
        let ids: Vec<String> = (0..ENDING).map(|n| format!("r{round}-{n}")).collect();
        for id in &ids {
            rig.sleeper(&image, id);
        }
        let before = subscribe(&rig.client);
        let killers: Vec<Background> = ids
            .iter()
            .map(|id| rig.client.spawn(["tasks", "kill", "--signal", "SIGKILL", id]))
            .collect();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(std::time::Duration::from_millis((random >> 33) % 120));
        rig.daemon.kill9();
        drop(killers);
        rig.daemon.start_again();
        let after = subscribe(&rig.client);
        for id in &ids {
            // The kill may have died with the daemon.
            rig.client.run(["tasks", "kill", "--signal", "SIGKILL", id]);
            eventually("the exit is told", || {
                let all = format!("{}{}", before.stdout(), after.stdout());
                let seen = facts(&all, id);
                let want = format!("exit {id}");
                match seen.iter().filter(|fact| **fact == want).count() {
                    0 => Err(all.clone()),
                    count => {
                        repeated += count - 1;
                        Ok(())
                    }
                }
            });
            rig.client.ok(["tasks", "delete", "--force", id]);
            rig.client.ok(["containers", "delete", id]);
        }
    }
    eprintln!("seed {seed}: {repeated} of {} told twice", rounds * ENDING as u64);
    assert!(repeated as u64 <= rounds.div_ceil(4), "{repeated} exits were told twice");
    rig.daemon.assert_clean();
}
