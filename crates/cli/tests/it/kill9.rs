//! kill -9 of the daemon at random moments: the same command succeeds afterwards and nothing is
//! left behind.

use std::time::Duration;

use gantry_testkit::{Daemon, Image, Registry, seed};

/// Rounds unless `GANTRY_TEST_KILLS` says otherwise; the nightly run takes a hundred.
const KILLS: usize = 12;

/// Kills come within this of the command's start; the whole cycle takes about as long.
const WINDOW: Duration = Duration::from_millis(700);

fn kills() -> usize {
    std::env::var("GANTRY_TEST_KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(KILLS)
}

#[test]
fn root_kill9_during_pull_run_and_delete() {
    let registry = Registry::start();
    let mut random = fastrand::Rng::with_seed(seed());
    let image = Image::builder().layers(4).big_layer(3 << 20, 1).build();
    let reference = image.push(&registry, "busybox:1");
    let mut daemon = Daemon::gantryd().start();
    let ctl = daemon.ctr().with_timeout(Duration::from_secs(30));
    for round in 0..kills() {
        let script = [
            vec!["images", "pull", "--plain-http", &reference],
            vec!["run", "-d", "--null-io", &reference, "c1", "sleep", "1000"],
            vec!["tasks", "rm", "-f", "c1"],
            vec!["containers", "rm", "c1"],
            vec!["images", "rm", "--sync", &reference],
        ];
        let after = Duration::from_micros(random.u64(0..WINDOW.as_micros() as u64));
        let started = std::time::Instant::now();
        let mut killed = false;
        for step in &script {
            let running = ctl.spawn(step);
            while !killed && running.is_running() {
                if started.elapsed() >= after {
                    daemon.kill9();
                    killed = true;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            if killed {
                let _ = running.kill();
                break;
            }
            let _ = running.wait();
        }
        if !killed {
            daemon.kill9();
        }
        daemon.start_again();
        // What was begun is finished or begun again, and then removed.
        ctl.ok(["images", "pull", "--plain-http", &reference]);
        let _ = ctl.run(["tasks", "rm", "-f", "c1"]);
        let _ = ctl.run(["containers", "rm", "c1"]);
        let _ = ctl.run(["snapshots", "rm", "c1"]);
        let output = ctl.run(["run", "--rm", &reference, "c1", "echo", "hi"]);
        assert_eq!(output.stdout, "hi\n", "round {round}: {}", output.stderr);
        ctl.ok(["images", "rm", "--sync", &reference]);
        // A client that died with the daemon leaves its lease; it would expire by itself.
        for lease in ctl.ok(["leases", "ls", "-q"]).lines() {
            ctl.ok(["leases", "rm", "--sync", lease]);
        }
        daemon.assert_clean();
    }
    assert_eq!(ctl.ok(["content", "ls", "-q"]), "");
}
