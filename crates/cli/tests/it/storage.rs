//! Snapshots, content, leases, events, plugins, namespaces.

use gantry_testkit::eventually;

use crate::support::{World, with_each_client};

#[test]
fn root_snapshots() {
    with_each_client(|world: &mut World| {
        let ctl = &world.ctl;
        let reference = world.busybox();
        ctl.ok(["run", "-d", "--null-io", &reference, "c1", "sh", "-c", "echo x > /new; sleep 99"]);
        let listed = ctl.ok(["snapshots", "ls"]);
        assert!(listed.contains("Committed") && listed.contains("Active"), "{listed}");
        let tree = ctl.ok(["snapshots", "tree"]);
        assert!(tree.starts_with("sha256:") && tree.contains("\\_ c1"), "{tree}");
        let usage = ctl.ok(["snapshots", "usage", "c1"]);
        assert!(usage.contains("c1"), "{usage}");
        let mounts = ctl.ok(["snapshots", "mounts", "/somewhere", "c1"]);
        assert!(mounts.contains("mount -t overlay") && mounts.contains("/somewhere"), "{mounts}");
        assert!(ctl.ok(["snapshots", "info", "c1"]).contains("\"Parent\": \"sha256:"));

        let diff = tempfile::tempdir().unwrap();
        eventually("the file is in the difference", || {
            let output = ctl.run([
                "snapshots",
                "diff",
                "--media-type",
                "application/vnd.oci.image.layer.v1.tar",
                "c1",
            ]);
            if output.stdout.contains("new") { Ok(()) } else { Err(output.stderr) }
        });
        drop(diff);

        let parent = listed.lines().find(|l| l.contains("Committed")).unwrap();
        let parent = parent.split_whitespace().next().unwrap();
        ctl.ok(["snapshots", "prepare", "mine", parent]);
        ctl.ok(["snapshots", "label", "mine", "a=b"]);
        ctl.ok(["snapshots", "commit", "mine-done", "mine"]);
        ctl.ok(["snapshots", "view", "seen", "mine-done"]);
        let failure = ctl.fail(["snapshots", "rm", "mine-done"]);
        assert!(failure.contains("mine-done"), "{failure}");
        ctl.ok(["snapshots", "rm", "seen", "mine-done"]);
        let failure = ctl.fail(["snapshots", "prepare", "x", "no-such-parent"]);
        assert!(failure.contains("not found"), "{failure}");
        crate::run::remove(world, "c1");
    });
}

#[test]
fn root_content() {
    with_each_client(|world: &mut World| {
        let ctl = &world.ctl;
        let digest = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let ingest = ["content", "ingest", "--expected-digest", digest, "my-ref"];
        let output = ctl.run_with_input(ingest, b"hello\n");
        assert_eq!(output.code, 0, "{}", output.stderr);
        ctl.ok(["content", "label", digest, "containerd.io/gc.root=yes"]);
        let listed = ctl.ok(["content", "ls"]);
        assert!(listed.contains(digest) && listed.contains("gc.root=yes"), "{listed}");
        assert_eq!(ctl.ok(["content", "get", digest]), "hello\n");
        assert_eq!(ctl.ok(["content", "ls", "-q"]).trim(), digest);
        let wrong = ["content", "ingest", "--expected-digest", digest, "other-ref"];
        ctl.ok(["content", "rm", digest]);
        let output = ctl.run_with_input(wrong, b"something else\n");
        assert!(output.code != 0 && output.stderr.contains("sha256:"), "{output:?}");
        let failure = ctl.fail(["content", "get", digest]);
        assert!(failure.contains("not found"), "{failure}");
        ctl.ok(["content", "active"]);
    });
}

#[test]
fn root_leases_keep_content() {
    with_each_client(|world: &mut World| {
        let ctl = &world.ctl;
        assert_eq!(ctl.ok(["leases", "create", "--id", "l1", "a=b"]).trim(), "l1");
        let listed = ctl.ok(["leases", "ls"]);
        assert!(listed.contains("l1") && listed.contains("a=b"), "{listed}");
        let failure = ctl.fail(["leases", "create", "--id", "l1"]);
        assert!(failure.contains("already exists"), "{failure}");
        assert!(!ctl.ok(["leases", "create"]).trim().is_empty());
        for lease in ctl.ok(["leases", "ls", "-q"]).lines() {
            ctl.ok(["leases", "rm", "--sync", lease]);
        }
        assert_eq!(ctl.ok(["leases", "ls", "-q"]), "");
    });
}

#[test]
fn root_events_come_in_order() {
    with_each_client(|world: &mut World| {
        let image = world.busybox();
        let events = world.ctl.spawn(["events"]);
        // The subscription has begun when something of ours shows up.
        eventually("events flow", || {
            world.ctl.ok(["namespaces", "label", world.ctl.namespace(), "probe=x"]);
            let seen = events.stdout();
            if seen.contains("/namespaces/update") { Ok(()) } else { Err(seen) }
        });
        let output = world.ctl.run(["run", "--rm", &image, "c1", "sh", "-c", "exit 6"]);
        assert_eq!(output.code, 6);
        events.wait_for_output("/containers/delete");
        let output = events.kill().stdout;
        let topics: Vec<&str> = output
            .lines()
            .filter_map(|l| l.split_whitespace().find(|w| w.starts_with("/tasks/")))
            .collect();
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
        assert!(output.contains("\"exit_status\":6"), "{output}");
    });
}

#[test]
fn root_plugins_version_and_namespaces() {
    with_each_client(|world: &mut World| {
        let ctl = &world.ctl;
        let plugins = ctl.ok(["plugins", "ls"]);
        for plugin in ["overlayfs", "native", "io.containerd.content.v1", "runtime.v2"] {
            assert!(plugins.contains(plugin), "no {plugin} in {plugins}");
        }
        let version = ctl.ok(["version"]);
        assert!(version.contains("Server:") && version.contains("UUID"), "{version}");
        ctl.ok(["namespaces", "create", "other", "a=b"]);
        let listed = ctl.ok(["namespaces", "ls"]);
        assert!(listed.contains("other") && listed.contains("a=b"), "{listed}");
        let failure = ctl.fail(["namespaces", "create", "other"]);
        assert!(failure.contains("already exists"), "{failure}");
        let failure = ctl.fail(["namespaces", "create", "not/good"]);
        assert!(failure.contains("not/good"), "{failure}");
        let reference = world.busybox();
        ctl.in_namespace("other").ok(["images", "pull", "--plain-http", &reference]);
        assert_ne!(ctl.run(["namespaces", "rm", "other"]).code, 0);
        ctl.in_namespace("other").ok(["images", "rm", "--sync", &reference]);
        ctl.ok(["namespaces", "rm", "other"]);
    });
}
