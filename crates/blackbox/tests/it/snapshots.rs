//! Snapshots: list, tree, usage, prepare, commit, view, diff, mounts, remove.

use std::fs;
use std::process::Command;

use gantry_testkit::{Image, Layer};

use crate::rig::{Rig, rows};

scenarios!(tree_and_usage, prepared_changed_committed, differences_are_a_tar, errors, unpacked);

fn chain_tip(rig: &Rig) -> String {
    let list = rows(&rig.client.ok(["snapshots", "ls"]));
    let parents: Vec<&str> = list.iter().filter(|r| r.len() == 3).map(|r| r[1].as_str()).collect();
    list.iter()
        .map(|r| r[0].clone())
        .find(|key| !parents.contains(&key.as_str()))
        .expect("a tip of the chain")
}

fn tree_and_usage(rig: &mut Rig) {
    rig.import(&Image::builder().layers(3).build(), "docker.io/library/three:1");
    let list = rows(&rig.client.ok(["snapshots", "ls"]));
    assert_eq!(list.len(), 3);
    assert!(list.iter().all(|r| r.last().unwrap() == "Committed"));
    let tree = rig.client.ok(["snapshots", "tree"]);
    assert_eq!(tree.lines().filter(|l| l.contains("\\_")).count(), 2, "{tree}");
    let tip = chain_tip(rig);
    let usage = rig.client.ok(["snapshots", "usage", "-b", &tip]);
    let size: u64 = rows(&usage)[0][1].parse().unwrap();
    assert!(size < 1 << 20, "the top layer is small: {usage}");
}

fn prepared_changed_committed(rig: &mut Rig) {
    rig.busybox();
    let tip = chain_tip(rig);
    let target = rig.scratch("mnt");
    fs::create_dir(&target).unwrap();
    let mounts = rig.client.ok(["snapshots", "prepare", "--mounts", "work", &tip]);
    if mounts.trim().is_empty() {
        panic!("prepare --mounts prints the mounts");
    }
    let command = rig.client.ok(["snapshots", "mounts", target.to_str().unwrap(), "work"]);
    let status = Command::new("sh").args(["-ec", &command]).status().unwrap();
    assert!(status.success(), "{command}");
    fs::write(target.join("added"), "added\n").unwrap();
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    rig.client.ok(["snapshots", "commit", "done", "work"]);
    let info = rig.client.ok(["snapshots", "info", "done"]);
    assert!(info.contains("\"Kind\": \"Committed\"") && info.contains(&tip), "{info}");
    rig.client.ok(["snapshots", "view", "look", "done"]);
    let command = rig.client.ok(["snapshots", "mounts", target.to_str().unwrap(), "look"]);
    assert!(Command::new("sh").args(["-ec", &command]).status().unwrap().success());
    assert_eq!(fs::read_to_string(target.join("added")).unwrap(), "added\n");
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    // Nothing holds a view that `ctr` makes: it may have been collected.
    let removed = rig.client.run(["snapshots", "rm", "look"]);
    assert!(removed.code == 0 || removed.stderr.contains("not found"), "{removed:?}");
    rig.client.ok(["snapshots", "rm", "done"]);
}

fn differences_are_a_tar(rig: &mut Rig) {
    let layer = Layer::new().file("added", 0o640, "added\n").whiteout("etc/group");
    let image = Image::builder().layer(layer).build();
    rig.import(&image, "docker.io/library/two:1");
    let tip = chain_tip(rig);
    let list = rows(&rig.client.ok(["snapshots", "ls"]));
    let parent = list.iter().find(|r| r[0] == tip).unwrap()[1].clone();
    let file = rig.scratch("diff.tar.gz");
    let script = format!("{}/diff.sh", rig.daemon.dir().display());
    fs::write(&script, "exec \"$@\" > \"$OUT\"").unwrap();
    let out = rig.client.ok(["snapshots", "diff", "--keep", &tip, &parent]);
    assert!(!out.is_empty(), "the diff is printed");
    // The bytes are binary; what was kept in the content store is the same diff.
    let digests = rig.client.ok(["content", "ls", "-q"]);
    let listed = digests.lines().any(|digest| {
        let blob = rig.daemon.root().join("io.containerd.content.v1.content/blobs/sha256");
        let path = blob.join(digest.trim_start_matches("sha256:"));
        fs::copy(path, &file).unwrap();
        let names = Command::new("tar").arg("tzf").arg(&file).output().unwrap();
        let names = String::from_utf8_lossy(&names.stdout).into_owned();
        names.contains("added") && names.contains("etc/.wh.group")
    });
    assert!(listed, "a gzip tar with the added file and the whiteout");
}

fn errors(rig: &mut Rig) {
    rig.busybox();
    let tip = chain_tip(rig);
    let error = rig.client.fail(["snapshots", "prepare", "x", "no-such-parent"]);
    assert!(error.contains("not found"), "{error}");
    rig.client.ok(["snapshots", "prepare", "x", &tip]);
    let error = rig.client.fail(["snapshots", "prepare", "x", &tip]);
    assert!(error.contains("already exists"), "{error}");
    let error = rig.client.fail(["snapshots", "rm", &tip]);
    assert!(error.contains("child"), "{error}");
    let error = rig.client.fail(["snapshots", "--snapshotter", "nobody", "ls"]);
    assert!(error.contains("snapshotter not loaded: nobody"), "{error}");
    rig.client.ok(["snapshots", "rm", "x"]);
}

fn unpacked(rig: &mut Rig) {
    let name = "docker.io/library/three:1";
    let image = Image::builder().layers(3).build();
    let path = rig.scratch("import.tar");
    image.write_oci_tar(&path, name);
    rig.client.ok(["images", "import", "--no-unpack", path.to_str().unwrap()]);
    assert_eq!(rows(&rig.client.ok(["snapshots", "ls"])).len(), 0);
    rig.client.ok(["snapshots", "unpack", image.top().digest.as_str()]);
    assert_eq!(rows(&rig.client.ok(["snapshots", "ls"])).len(), 3);
    rig.client.ok(["snapshots", "--snapshotter", "native", "ls"]);
}
