//! Containers outlive the daemon.

use std::time::Duration;

use gantry_testkit::eventually;

use crate::run::{remove, wait_for_status};
use crate::support::{World, with_each_client};

#[test]
fn root_containers_survive_a_restart() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let uri = format!("file://{}", log.display());
        let script = "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.05; done";
        world.ctl.ok(["run", "-d", "--log-uri", &uri, &image, "c1", "sh", "-c", script]);
        let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        for kill in [false, true] {
            if kill {
                world.daemon.kill9();
            } else {
                assert_eq!(world.daemon.stop(), 0);
            }
            let before = lines();
            eventually("output flows without the daemon", || {
                if lines() > before + 3 { Ok(()) } else { Err(format!("{} lines", lines())) }
            });
            world.daemon.start_again();
            wait_for_status(world, "c1", "RUNNING");
            let id = format!("e{kill}");
            let output =
                world.ctl.run(["tasks", "exec", "--exec-id", &id, "c1", "sh", "-c", "exit 4"]);
            assert_eq!(output.code, 4, "{}", output.stderr);
        }
        remove(world, "c1");
    });
}

#[test]
fn root_an_exit_while_the_daemon_is_down_is_known() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let args = ["run", "-d", "--null-io", &image, "c1", "sh", "-c", "sleep 1; exit 77"];
        world.ctl.ok(args);
        world.daemon.kill9();
        std::thread::sleep(Duration::from_millis(1500));
        world.daemon.start_again();
        wait_for_status(world, "c1", "STOPPED");
        assert_eq!(world.ctl.run(["tasks", "rm", "c1"]).code, 77);
        world.ctl.ok(["containers", "rm", "c1"]);
    });
}

#[test]
fn root_a_foreground_client_sees_the_daemon_go() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let running = world.ctl.spawn(["run", &image, "c1", "sh", "-c", "echo up; sleep 1000"]);
        running.wait_for_output("up");
        world.daemon.kill9();
        let output = running.wait();
        assert_ne!(output.code, 0, "{output:?}");
        world.daemon.start_again();
        wait_for_status(world, "c1", "RUNNING");
        remove(world, "c1");
    });
}
