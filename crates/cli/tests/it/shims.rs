//! Shims and daemons of different makers together.

use gantry_testkit::{Daemon, built_program, system_program};

use crate::run::{remove, wait_for_status};
use crate::support::{World, with_client};

/// The same story whatever the shim: foreground, exec, exit code, background.
fn story(world: &World, runtime: &str) {
    let image = world.busybox();
    let run = |args: &[&str]| {
        let all = ["run", "--runtime", runtime].iter().chain(args).copied();
        world.ctl.run(all)
    };
    let output = run(&["--rm", &image, "c1", "sh", "-c", "echo hi; exit 9"]);
    assert_eq!((output.stdout.as_str(), output.code), ("hi\n", 9), "{}", output.stderr);
    let output = run(&["-d", "--null-io", &image, "c2", "sleep", "1000"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    wait_for_status(world, "c2", "RUNNING");
    let output = world.ctl.run(["tasks", "exec", "--exec-id", "e1", "c2", "sh", "-c", "exit 3"]);
    assert_eq!(output.code, 3, "{}", output.stderr);
    world.ctl.ok(["tasks", "pause", "c2"]);
    world.ctl.ok(["tasks", "resume", "c2"]);
    assert!(world.ctl.ok(["tasks", "metrics", "c2"]).contains("pids.current"));
    remove(world, "c2");
}

#[test]
fn root_our_shim_under_debian_containerd() {
    let shim = built_program("containerd-shim-runc-v2");
    with_client("ctr", Daemon::containerd().start(), |world: &mut World| {
        story(world, shim.to_str().unwrap());
    });
}

#[test]
fn root_our_shim_under_a_restarted_debian_containerd() {
    let shim = built_program("containerd-shim-runc-v2");
    with_client("ctr", Daemon::containerd().start(), |world: &mut World| {
        let image = world.busybox();
        let runtime = shim.to_str().unwrap();
        let args = ["run", "-d", "--null-io", "--runtime", runtime, &image, "c1", "sleep", "1000"];
        world.ctl.ok(args);
        world.daemon.restart();
        wait_for_status(world, "c1", "RUNNING");
        remove(world, "c1");
    });
}

#[test]
fn root_debian_shim_under_gantryd() {
    let shim = system_program("containerd-shim-runc-v2");
    for program in ["ctr", "gantry"] {
        with_client(program, Daemon::gantryd().start(), |world: &mut World| {
            story(world, shim.to_str().unwrap());
        });
    }
}
