//! Image records: listing, checking, tagging, removing, mounting, import and export.

use std::fs;
use std::process::Command;

use gantry_testkit::{DaemonKind, Image};

use crate::rig::{Client, Rig, rows};

scenarios!(
    listed_tagged_and_removed,
    checked,
    labelled,
    mounted_read_only,
    oci_round_trip,
    docker_archive,
);

fn listed_tagged_and_removed(rig: &mut Rig) {
    let name = rig.busybox();
    let list = rig.client.ok(["images", "ls"]);
    let header = list.lines().next().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(header, ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]);
    let row = rows(&list).into_iter().find(|r| r[0] == name).expect("the image is listed");
    assert_eq!(row[1], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(row[2], Image::busybox().top().digest.as_str());
    assert!(list.contains("linux/amd64"), "{list}");

    let tag = "docker.io/library/other:2";
    rig.client.ok(["images", "tag", &name, tag]);
    let twice = rig.client.fail(["images", "tag", &name, tag]);
    assert!(twice.contains("already exists"), "{twice}");
    rig.client.ok(["images", "rm", &name]);
    assert_eq!(rig.client.ok(["images", "ls", "-q"]).trim(), tag);
    assert_eq!(rig.client.ok(["run", "--rm", tag, "c1", "echo", "hi"]), "hi\n");
    rig.client.ok(["images", "rm", "--sync", tag]);
    assert_eq!(rig.client.ok(["images", "ls", "-q"]), "");
    assert_eq!(rig.client.ok(["content", "ls", "-q"]), "", "content is collected");
    assert_eq!(rows(&rig.client.ok(["snapshots", "ls"])).len(), 0, "snapshots are collected");
    rig.daemon.assert_clean();
}

fn checked(rig: &mut Rig) {
    let name = rig.busybox();
    let list = rig.client.ok(["images", "check"]);
    let row = list.lines().find(|l| l.starts_with(&name)).expect("the image is listed");
    assert!(row.contains("complete (2/2)") && row.trim_end().ends_with("true"), "{row}");
}

fn labelled(rig: &mut Rig) {
    let name = rig.busybox();
    rig.client.ok(["images", "label", &name, "colour=blue"]);
    assert!(rig.client.ok(["images", "ls", "labels.colour==blue"]).contains(&name));
    assert!(!rig.client.ok(["images", "ls", "labels.colour==red"]).contains(&name));
    assert!(rig.client.ok(["images", "ls", &format!("name=={name}")]).contains("colour=blue"));
}

fn mounted_read_only(rig: &mut Rig) {
    let name = rig.busybox();
    let target = rig.scratch("mnt");
    fs::create_dir(&target).unwrap();
    rig.client.ok(["images", "mount", &name, target.to_str().unwrap()]);
    assert!(target.join("bin/busybox").is_file());
    assert!(fs::write(target.join("new"), "x").is_err(), "the mount is read-only");
    rig.client.ok(["images", "unmount", "--rm", target.to_str().unwrap()]);
    assert!(!target.join("bin").exists());
}

fn oci_round_trip(rig: &mut Rig) {
    let name = rig.busybox();
    let archive = rig.scratch("export.tar");
    let archive = archive.to_str().unwrap();
    rig.client.ok(["images", "export", archive, &name]);
    let members = Command::new("tar").args(["tf", archive]).output().unwrap();
    let members = String::from_utf8(members.stdout).unwrap();
    for member in ["oci-layout", "index.json", "manifest.json", "blobs/sha256/"] {
        assert!(members.contains(member), "no {member} in {members}");
    }
    rig.client.ok(["images", "rm", "--sync", &name]);
    rig.client.ok(["images", "import", archive]);
    assert_eq!(rig.client.ok(["run", "--rm", &name, "c1", "echo", "hi"]), "hi\n");
}

fn docker_archive(rig: &mut Rig) {
    let path = rig.scratch("docker.tar");
    Image::builder().layers(3).build().write_docker_tar(&path, "docker.io/library/saved:7");
    rig.client.ok(["images", "import", path.to_str().unwrap()]);
    let name = "docker.io/library/saved:7";
    assert!(rig.client.ok(["images", "ls", "-q"]).contains(name));
    let out = rig.client.ok(["run", "--rm", name, "c1", "cat", "/layers/2"]);
    assert_eq!(out, "layer 2\n");
}

/// The lease that keeps a mounted image's snapshot ends when it is told to.
#[test]
fn root_mounted_for_a_while() {
    let rig = Rig::new(DaemonKind::Gantryd, Client::Gantry);
    let name = rig.busybox();
    let lifetimes = [("1h", true), ("0s", false)];
    for (expiration, expires) in lifetimes {
        let target = rig.scratch(expiration);
        fs::create_dir(&target).unwrap();
        let target = target.to_str().unwrap().to_owned();
        rig.client.ok(["images", "mount", "--expiration", expiration, &name, &target]);
        let leases = rig.client.ok(["leases", "ls"]);
        assert_eq!(leases.contains("containerd.io/gc.expire="), expires, "{leases}");
        rig.client.ok(["images", "unmount", "--rm", &target]);
        for lease in rig.client.ok(["leases", "ls", "-q"]).lines() {
            rig.client.ok(["leases", "rm", lease]);
        }
    }
}
