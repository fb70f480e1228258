//! Snapshots, content and layers in another daemon, over `[proxy_plugins]`.

use gantry_testkit::{Daemon, DaemonBuilder, Image, Layer, eventually};

use crate::doctor::{examine, find};
use crate::rig::{Client, Rig, rows};

/// A daemon that serves as a plugin. It collects no garbage: nothing made here has a root there.
fn remote(daemon: DaemonBuilder) -> Daemon {
    daemon.config("[plugins.\"io.containerd.gc.v1.scheduler\"]\n  startup_delay = \"10h\"").start()
}

fn section(name: &str, kind: &str, remote: &Daemon) -> String {
    let address = remote.address().display().to_string();
    format!("[proxy_plugins.{name}]\n  type = \"{kind}\"\n  address = \"{address}\"\n")
}

/// A daemon whose native snapshotter is that of `remote`.
fn over_snapshots_of(remote: &Daemon) -> Rig {
    let daemon = Daemon::gantryd()
        .disable("io.containerd.snapshotter.v1.native")
        .config(&section("native", "snapshot", remote));
    Rig::with(daemon.start(), Client::Gantry)
}

/// The snapshots of `rig`'s namespace in the remote daemon.
fn snapshots_there(remote: &Daemon, rig: &Rig) -> Vec<String> {
    let ctr = remote.ctr().in_namespace(rig.client.namespace());
    let list = ctr.ok(["snapshots", "--snapshotter", "native", "ls"]);
    rows(&list).into_iter().map(|row| row[0].clone()).collect()
}

fn containers_run_on_them(remote: &Daemon) {
    let mut rig = over_snapshots_of(remote);
    let plugins = rig.client.ok(["plugins", "ls"]);
    assert!(plugins.lines().any(|l| l.contains("snapshotter.v1") && l.contains("native")));
    let reference = Image::busybox().push(rig.registry(), "busybox");
    let pull = ["images", "pull", "--plain-http", "--snapshotter", "native", &reference];
    rig.client.ok(pull);
    let run = ["run", "--rm", "--snapshotter", "native", &reference, "c1", "echo", "hi"];
    assert_eq!(rig.client.ok(run), "hi\n");
    rig.client.ok(["run", "-d", "--snapshotter", "native", &reference, "c2", "sleep", "1000"]);
    assert!(!snapshots_there(remote, &rig).is_empty());
    // The plugin's names are not the client's.
    let list = rig.client.ok(["snapshots", "--snapshotter", "native", "ls"]);
    assert!(rows(&list).iter().any(|row| row[0] == "c2"), "{list}");
    // What was there before a restart is there after it.
    rig.daemon.restart();
    assert_eq!(rig.client.ok(["snapshots", "--snapshotter", "native", "ls"]), list);
    rig.remove("c2");
    rig.client.ok(["images", "rm", "--sync", &reference]);
    eventually("the plugin's snapshots are gone", || {
        let left = snapshots_there(remote, &rig);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    rig.daemon.assert_clean();
}

#[test]
fn root_snapshots_of_gantryd() {
    containers_run_on_them(&remote(Daemon::gantryd()));
}

#[test]
fn root_snapshots_of_containerd() {
    containers_run_on_them(&remote(Daemon::containerd()));
}

/// A remote snapshotter says AlreadyExists to the preparation of a layer that it has: nothing is
/// unpacked, and the container sees the plugin's tree.
#[test]
fn root_a_layer_that_the_plugin_has_is_not_unpacked() {
    let remote = remote(Daemon::gantryd());
    let mut rig = over_snapshots_of(&remote);
    let image = Image::builder().layer(Layer::new().file("origin", 0o644, "registry")).build();
    let reference = image.push(rig.registry(), "known");
    let pull = ["images", "pull", "--plain-http", "--snapshotter", "native", &reference];
    // The plugin has the layers by means of its own, and says so by the label.
    let there = remote.gantry().in_namespace(rig.client.namespace());
    there.ok(pull);
    let before = snapshots_there(&remote, &rig);
    for name in &before {
        let label = format!("containerd.io/snapshot.ref={name}");
        there.ok(["snapshots", "--snapshotter", "native", "label", name, &label]);
    }
    // A file that tells the plugin's tree from an unpacked one.
    let trees = remote.root().join("io.containerd.snapshotter.v1.native/snapshots");
    let files = std::fs::read_dir(trees).unwrap().map(|dir| dir.unwrap().path().join("origin"));
    let files: Vec<_> = files.filter(|file| file.exists()).collect();
    assert!(!files.is_empty());
    files.iter().for_each(|file| std::fs::write(file, "plugin").unwrap());
    rig.client.ok(pull);
    assert_eq!(snapshots_there(&remote, &rig), before, "nothing was unpacked");
    let run = ["run", "--rm", "--snapshotter", "native", &reference, "c1", "cat", "/origin"];
    assert_eq!(rig.client.ok(run), "plugin");
}

/// The plugin has lost a snapshot that is on record here, and has one that nobody recorded.
#[test]
fn root_doctor_mends_what_a_plugin_and_the_records_disagree_on() {
    let remote = remote(Daemon::gantryd());
    let rig = over_snapshots_of(&remote);
    let of_plugin = ["snapshots", "--snapshotter", "native"];
    let here = |args: &[&str]| rig.client.ok(of_plugin.iter().chain(args).copied());
    let namespaced = remote.gantry().in_namespace(rig.client.namespace());
    let there = |args: &[&str]| namespaced.ok(of_plugin.iter().chain(args).copied());
    for key in ["lost", "kept"] {
        here(&["prepare", key]);
        here(&["label", key, "containerd.io/gc.root=yes"]);
    }
    assert_eq!(examine(&rig, &[]), Vec::<serde_json::Value>::new());
    let names = snapshots_there(&remote, &rig);
    let lost = names.iter().find(|name| name.ends_with("/lost")).expect("it is there");
    there(&["rm", lost]);
    let stray = format!("{}/4711/stray", rig.client.namespace());
    there(&["prepare", &stray]);

    let found = examine(&rig, &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(find(&found, "snapshot", "damaged", lost).is_some(), "{found:#?}");
    assert!(find(&found, "snapshot", "orphan", &stray).is_some(), "{found:#?}");
    assert!(examine(&rig, &["--fix"]).iter().all(|finding| finding["fixed"] == true));
    assert_eq!(examine(&rig, &[]), Vec::<serde_json::Value>::new());
    let left = snapshots_there(&remote, &rig);
    assert!(left.len() == 1 && left[0].ends_with("/kept"), "{left:?}");
    let list = here(&["ls"]);
    assert_eq!(rows(&list).iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["kept"]);
}

/// Content, snapshots and layers all elsewhere: this daemon keeps records alone.
#[test]
fn root_everything_elsewhere() {
    let remote = remote(Daemon::gantryd());
    let daemon = Daemon::gantryd()
        .disable("io.containerd.snapshotter.v1.native")
        .disable("io.containerd.content.v1.content")
        .config(&section("native", "snapshot", &remote))
        .config(&section("blobs", "content", &remote))
        .config(&section("layers", "diff", &remote))
        .config("[plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"layers\"]");
    let rig = Rig::with(daemon.start(), Client::Ctr);
    // The namespace in which the plugin keeps content: its differ has to find it.
    let ctr = rig.client.in_namespace("default");
    let path = rig.scratch("import.tar");
    Image::busybox().write_oci_tar(&path, "docker.io/library/busybox:1");
    ctr.ok(["images", "import", "--snapshotter", "native", path.to_str().unwrap()]);
    let image = "docker.io/library/busybox:1";
    let run = ["run", "--rm", "--snapshotter", "native", image, "wedge-c1", "echo", "hi"];
    assert_eq!(ctr.ok(run), "hi\n");
    let blobs = ctr.ok(["content", "ls", "-q"]);
    let there = remote.ctr().in_namespace("default").ok(["content", "ls", "-q"]);
    assert!(!blobs.is_empty() && blobs.lines().all(|digest| there.contains(digest)), "{there}");
    assert!(!rig.daemon.root().join("io.containerd.content.v1.content/blobs").exists());
    ctr.ok(["images", "rm", "--sync", image]);
    eventually("the plugin's blobs are gone", || {
        let left = remote.ctr().in_namespace("default").ok(["content", "ls", "-q"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// The transfer service unpacks into a snapshotter by the differ that `unpack_config` names.
#[test]
fn root_a_pull_by_another_differ() {
    let dir = tempfile::tempdir().unwrap();
    // Tells that it was the plugin that applied the layer.
    let (inflater, log) = crate::policy::inflater(dir.path(), "exec gzip -dc");
    let remote = remote(Daemon::gantryd().config(&inflater));
    let daemon = Daemon::gantryd()
        .disable("io.containerd.content.v1.content")
        .config(&section("blobs", "content", &remote))
        .config(&section("layers", "diff", &remote))
        .config("[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]")
        .config("  platform = \"linux/amd64\"\n  snapshotter = \"native\"")
        .config("  differ = \"layers\"");
    let mut rig = Rig::with(daemon.start(), Client::Gantry);
    let reference = Image::busybox().push(rig.registry(), "busybox:1");
    // The plugin's differ looks for content in its own namespace.
    let client = rig.client.in_namespace("default");
    client.ok(["images", "pull", "--plain-http", &reference]);
    assert!(!log.exists(), "overlayfs has our own differ");
    client.ok(["images", "pull", "--plain-http", "--snapshotter", "native", &reference]);
    assert_eq!(std::fs::read_to_string(log).unwrap().lines().count(), 1);
    let run = ["run", "--rm", "--snapshotter", "native", &reference, "differ-c1", "echo", "hi"];
    assert_eq!(client.ok(run), "hi\n");
}

#[test]
fn root_a_plugin_beside_a_built_in_one_of_its_name_is_refused() {
    let remote = remote(Daemon::gantryd());
    let section = section("overlayfs", "snapshot", &remote);
    let log = Daemon::gantryd().config(&section).fails_to_start();
    assert!(log.contains("proxy plugin \"overlayfs\""), "{log}");
    assert!(log.contains("disabled_plugins"), "{log}");
}
