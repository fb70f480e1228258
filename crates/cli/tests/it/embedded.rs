//! `gantry --embedded`: no daemon installed.

use std::path::Path;

use gantry_testkit::{Ctr, Image, Registry, built_program, eventually};

/// A runner whose commands run the daemon inside themselves, on `root`.
fn embedded(root: &Path) -> Ctr {
    let root = root.to_str().unwrap();
    Ctr::new(built_program("gantry"), "/no/such/socket", Some("emb"))
        .with_env("GANTRY_EMBEDDED_ROOT", root)
        .with_global("--embedded")
}

#[test]
fn root_embedded_runs_a_container_end_to_end() {
    let registry = Registry::start();
    let reference = Image::busybox().push(&registry, "busybox:1");
    let dir = tempfile::Builder::new().prefix("gke").tempdir().unwrap();
    let gantry = embedded(dir.path());
    gantry.ok(["images", "pull", "--plain-http", &reference]);
    let output = gantry.run(["run", "--rm", &reference, "c1", "sh", "-c", "echo hi; exit 4"]);
    assert_eq!((output.stdout.as_str(), output.code), ("hi\n", 4), "{}", output.stderr);

    // A detached container outlives the command; the next one finds it.
    gantry.ok(["run", "-d", "--null-io", &reference, "c2", "sleep", "1000"]);
    assert!(gantry.ok(["tasks", "ls"]).contains("RUNNING"));
    let output = gantry.run(["tasks", "exec", "--exec-id", "e1", "c2", "sh", "-c", "exit 3"]);
    assert_eq!(output.code, 3, "{}", output.stderr);

    // Two at a time share one daemon.
    let running = gantry.spawn(["run", "--rm", &reference, "c3", "sh", "-c", "echo up; sleep 3"]);
    running.wait_for_output("up");
    assert!(gantry.ok(["tasks", "ls", "-q"]).contains("c3"));
    assert_eq!(running.wait().code, 0);

    gantry.ok(["tasks", "kill", "-s", "SIGKILL", "c2"]);
    eventually("the task is over", || {
        let output = gantry.run(["tasks", "rm", "c2"]);
        if output.code == 0 { Ok(()) } else { Err(output.text()) }
    });
    gantry.ok(["containers", "rm", "c2"]);
    gantry.ok(["images", "rm", "--sync", &reference]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn errors_are_one_line() {
    let gantry = Ctr::new(built_program("gantry"), "/no/such/socket", None);
    for args in [
        vec!["images", "ls"],
        vec!["run"],
        vec!["no-such-command"],
        vec!["images", "pull", "--no-such-flag"],
        vec!["tasks", "kill", "-s", "SIGNONE", "c1"],
    ] {
        let output = gantry.run(&args);
        assert_eq!(output.code, 1, "{args:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{args:?}: {}", output.stderr);
        assert!(output.stderr.starts_with("gantry: "), "{args:?}: {}", output.stderr);
    }
    assert!(gantry.fail(["images", "ls"]).contains("/no/such/socket"), "the address is named");
    assert!(gantry.ok(["--help"]).contains("images"));
}
