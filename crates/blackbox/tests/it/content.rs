//! The content store: ingest, list, read, label, delete, and what is refused.

use gantry_testkit::{Image, eventually};

use crate::rig::Rig;

scenarios!(ingested_and_read, wrong_expectations_are_refused, labelled, deleted);

const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

/// Stores the blob and pins it: ctr ingests without a lease, so a collection may come between.
fn ingest(rig: &Rig) {
    eventually("the blob is stored and pinned", || {
        let args = ["content", "ingest", "--expected-digest", HELLO, "hello"];
        let out = rig.client.run_with_input(args, b"hello\n");
        let pin = rig.client.run(["content", "label", HELLO, "containerd.io/gc.root=test"]);
        if pin.code == 0 { Ok(()) } else { Err(format!("{} {}", out.stderr, pin.stderr)) }
    });
}

fn ingested_and_read(rig: &mut Rig) {
    ingest(rig);
    assert_eq!(rig.client.ok(["content", "ls", "-q"]).trim(), HELLO);
    assert_eq!(rig.client.ok(["content", "get", HELLO]), "hello\n");
    assert!(rig.client.ok(["content", "ls"]).contains("6B"));
    assert_eq!(rig.client.ok(["content", "active"]).lines().count(), 1, "no ingest is left");
}

fn wrong_expectations_are_refused(rig: &mut Rig) {
    let other = format!("sha256:{}", "0".repeat(64));
    let args = ["content", "ingest", "--expected-digest", &other, "hello"];
    let out = rig.client.run_with_input(args, b"hello\n");
    assert_ne!(out.code, 0);
    assert!(
        out.stderr.contains("failed precondition") && out.stderr.contains(HELLO),
        "{}",
        out.stderr
    );
    let args = ["content", "ingest", "--expected-size", "99", "sized"];
    let out = rig.client.run_with_input(args, b"hello\n");
    assert_ne!(out.code, 0);
    assert_eq!(rig.client.ok(["content", "ls", "-q"]), "");
}

fn labelled(rig: &mut Rig) {
    ingest(rig);
    rig.client.ok(["content", "label", HELLO, "colour=blue"]);
    assert!(rig.client.ok(["content", "ls"]).contains("colour=blue"));
    assert!(rig.client.ok(["content", "ls", "labels.colour==blue"]).contains(HELLO));
    let long = format!("k={}", "v".repeat(4096));
    let error = rig.client.fail(["content", "label", HELLO, &long]);
    assert!(error.contains("4096") && error.contains("invalid argument"), "{error}");
    rig.client.ok(["content", "label", HELLO, "colour="]);
    assert!(!rig.client.ok(["content", "ls"]).contains("colour"));
}

fn deleted(rig: &mut Rig) {
    ingest(rig);
    rig.client.ok(["content", "rm", HELLO]);
    assert_eq!(rig.client.ok(["content", "ls", "-q"]), "");
    let name = rig.busybox();
    let digests = rig.client.ok(["content", "ls", "-q"]);
    for blob in Image::busybox().descriptors() {
        assert!(digests.contains(blob.digest.as_str()), "{name}: {digests}");
    }
}
