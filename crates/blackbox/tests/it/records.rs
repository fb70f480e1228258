//! Records: containers, leases, namespaces, plugins, version.

use std::collections::BTreeSet;

use gantry_testkit::{Ctr, DaemonKind};
use serde_json::Value;

use crate::rig::{Client, Rig, rows};

scenarios!(containers, leases, namespaces, namespaces_are_apart, plugins_and_version);

fn containers(rig: &mut Rig) {
    let image = rig.busybox();
    rig.client.ok(["containers", "create", "--label", "colour=blue", &image, "c1", "true"]);
    let list = rows(&rig.client.ok(["containers", "ls"]));
    assert_eq!(list[0], ["c1", &image, "io.containerd.runc.v2"]);
    let info: Value = serde_json::from_str(&rig.client.ok(["containers", "info", "c1"])).unwrap();
    assert_eq!(info["ID"], "c1");
    assert_eq!(info["Labels"]["colour"], "blue");
    assert_eq!(info["Spec"]["process"]["args"][0], "true");
    rig.client.ok(["containers", "label", "c1", "size=big"]);
    assert_eq!(rig.client.ok(["containers", "ls", "-q", "labels.size==big"]).trim(), "c1");
    assert_eq!(rig.client.ok(["containers", "ls", "-q", "labels.size==small"]).trim(), "");
    let error = rig.client.fail(["containers", "create", &image, "c1"]);
    assert!(error.contains("already exists"), "{error}");
    let error = rig.client.fail(["containers", "create", &image, "bad/id"]);
    assert!(error.contains("bad/id") && error.contains("invalid argument"), "{error}");
    let error = rig.client.fail(["containers", "ls", "labels..=="]);
    assert!(error.contains("invalid argument"), "{error}");
    rig.client.ok(["containers", "delete", "c1"]);
    assert_eq!(rig.client.ok(["containers", "ls", "-q"]), "");
    // ctr leaves the refused container's snapshot to the collector.
    rig.daemon.assert_clean();
}

fn leases(rig: &mut Rig) {
    let made = rig.client.ok(["leases", "create", "--id", "l1", "--expires", "1h", "colour=blue"]);
    assert_eq!(made.trim(), "l1");
    let list = rig.client.ok(["leases", "ls"]);
    assert!(list.contains("l1") && list.contains("colour=blue"), "{list}");
    assert!(list.contains("containerd.io/gc.expire="), "{list}");
    let invented = rig.client.ok(["leases", "create"]);
    assert!(rig.client.ok(["leases", "ls", "-q"]).contains(invented.trim()));
    let error = rig.client.fail(["leases", "create", "--id", "l1"]);
    assert!(error.contains("already exists"), "{error}");
    rig.client.ok(["leases", "delete", "l1"]);
    rig.client.ok(["leases", "delete", "--sync", invented.trim()]);
    assert_eq!(rig.client.ok(["leases", "ls", "-q"]), "");
}

fn namespaces(rig: &mut Rig) {
    rig.client.ok(["namespaces", "create", "made", "colour=blue"]);
    assert!(rig.client.ok(["namespaces", "ls"]).contains("colour=blue"));
    rig.client.ok(["namespaces", "label", "made", "colour=red"]);
    assert!(rig.client.ok(["namespaces", "ls"]).contains("colour=red"));
    let error = rig.client.fail(["namespaces", "create", "made"]);
    assert!(error.contains("already exists"), "{error}");
    let error = rig.client.fail(["namespaces", "create", "not/valid"]);
    assert!(error.contains("invalid argument"), "{error}");
    rig.client.ok(["namespaces", "rm", "made"]);
    assert!(!rig.client.ok(["namespaces", "ls", "-q"]).contains("made"));
    rig.busybox();
    let error = rig.client.fail(["namespaces", "rm", rig.client.namespace()]);
    assert!(error.contains("must be empty"), "{error}");
}

fn namespaces_are_apart(rig: &mut Rig) {
    let image = rig.busybox();
    let elsewhere = rig.client.in_namespace("elsewhere");
    assert_eq!(elsewhere.ok(["images", "ls", "-q"]), "");
    assert_eq!(elsewhere.ok(["content", "ls", "-q"]), "");
    let error = elsewhere.fail(["run", "--rm", &image, "c1", "true"]);
    assert!(error.contains("not found"), "{error}");
}

fn plugins_and_version(rig: &mut Rig) {
    let plugins = rig.client.ok(["plugins", "ls"]);
    for (kind, id) in [
        ("io.containerd.content.v1", "content"),
        ("io.containerd.snapshotter.v1", "overlayfs"),
        ("io.containerd.snapshotter.v1", "native"),
        ("io.containerd.metadata.v1", "bolt"),
        ("io.containerd.runtime.v2", "task"),
        ("io.containerd.grpc.v1", "containers"),
    ] {
        let row = rows(&plugins).into_iter().find(|r| r[0] == kind && r[1] == id);
        let row = row.unwrap_or_else(|| panic!("no {kind} {id} in\n{plugins}"));
        assert_eq!(row.last().unwrap(), "ok");
    }
    let version = rig.client.ok(["version"]);
    assert!(version.contains("Client:") && version.contains("Server:"), "{version}");
}

/// The default spec, beside that of containerd 2's client.
#[test]
fn root_the_default_spec_is_printed() {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let spec = |client: &Ctr| -> Value {
        serde_json::from_str(&client.ok(["oci", "spec"])).expect("a spec")
    };
    let (ours, theirs) = (spec(&rig.client), spec(&rig.daemon.ctr2()));
    for part in ["namespaces", "maskedPaths", "readonlyPaths", "cgroupsPath"] {
        assert_eq!(ours["linux"][part], theirs["linux"][part], "{part}");
    }
    assert_eq!(ours["mounts"], theirs["mounts"]);
    let capabilities = |spec: &Value| -> BTreeSet<String> {
        let all = spec["process"]["capabilities"]["bounding"].as_array().expect("a set").iter();
        all.map(|name| name.as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(capabilities(&ours), capabilities(&theirs));
    assert_eq!(spec(&rig.client), ours);
}

#[test]
fn root_deprecations_are_listed() {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let list = rig.client.ok(["deprecations", "list"]);
    assert_eq!(
        list.split_whitespace().collect::<Vec<_>>(),
        ["ID", "LAST", "OCCURRENCE", "MESSAGE"]
    );
}
