//! What must hold of a daemon that starts after a power cut.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use gantry_testkit::{Ctr, Daemon, Image, eventually};
use serde_json::Value;

use super::steps::{State, Steps};
use super::trees::{self, Tree};
use crate::rig::rows;

/// The namespace the machine works in.
const NAMESPACE: &str = "power";

/// Checks disks against the steps that were made on them.
pub(super) struct Checker<'a> {
    steps: &'a Steps,
    trees: Vec<Tree>,
}

/// One daemon on one disk.
struct Scene<'a> {
    checker: &'a Checker<'a>,
    daemon: Daemon,
    ctr: Ctr,
}

impl<'a> Checker<'a> {
    /// Works out what the images have to look like.
    pub(super) fn new(steps: &'a Steps) -> Self {
        Self { steps, trees: steps.images().iter().map(trees::of_image).collect() }
    }

    /// Starts a daemon on the disk mounted at `root` and checks it. The first `done` steps were
    /// acknowledged; the one after them may have been made or not.
    pub(super) fn check(&self, root: &Path, done: usize) {
        let daemon = Daemon::gantryd().root(root).start();
        let ctr = daemon.ctr().in_namespace(NAMESPACE);
        let scene = Scene { checker: self, daemon, ctr };
        let before = self.steps.state(done);
        let after = self.steps.state((done + 1).min(self.steps.len()));
        scene.check_images(&before, &after);
        scene.check_containers(&before, &after);
        scene.check_leases(&before, &after);
        scene.check_work_goes_on();
    }
}

impl Scene<'_> {
    fn check_images(&self, before: &State, after: &State) {
        let found = self.list(&["images", "ls", "-q"]);
        let names =
            |s: &State| -> BTreeSet<String> { s.images.iter().map(|n| Steps::name(*n)).collect() };
        assert_between("images", &found, &names(before), &names(after));
        let report = self.ctr.ok(["images", "check"]);
        for (n, image) in self.checker.steps.images().iter().enumerate() {
            let name = Steps::name(n);
            let Some(line) = report.lines().find(|l| l.split(' ').next() == Some(&name)) else {
                assert!(!found.contains(&name), "{name} is not in:\n{report}");
                continue;
            };
            // What a name is given to is whole, acknowledged or not.
            assert!(line.contains("complete"), "{report}");
            self.check_blobs(image);
            let unpacked = line.trim_end().ends_with("true");
            let acknowledged = before.images.contains(&n) && after.images.contains(&n);
            assert!(unpacked || !acknowledged, "{name} is not unpacked:\n{report}");
            if unpacked {
                let target = self.daemon.dir().join(format!("image-{n}"));
                fs::create_dir(&target).unwrap();
                let at = target.to_str().unwrap();
                self.ctr.ok(["images", "mount", &name, at]);
                let tree = trees::read(&target);
                self.ctr.ok(["images", "unmount", "--rm", at]);
                trees::assert_same(&name, &tree, &self.checker.trees[n]);
            }
        }
    }

    fn check_blobs(&self, image: &Image) {
        let dir = self.daemon.root().join("io.containerd.content.v1.content/blobs/sha256");
        for (digest, bytes) in image.blobs() {
            let found = fs::read(dir.join(digest.hex()));
            let found = found.unwrap_or_else(|e| panic!("{digest}: {e}"));
            assert!(found == *bytes, "{digest} has {} other bytes", found.len());
        }
    }

    fn check_containers(&self, before: &State, after: &State) {
        let found = self.list(&["containers", "ls", "-q"]);
        let ids = |s: &State| -> BTreeSet<String> { s.containers.keys().cloned().collect() };
        let mut may = ids(after);
        // A container that was being run.
        may.extend(found.iter().filter(|id| self.is_in_flight(before, id)).cloned());
        assert_between("containers", &found, &ids(before), &may);
        for (id, (image, label)) in &before.containers {
            let Some((_, label_after)) = after.containers.get(id) else { continue };
            let info: Value =
                serde_json::from_str(&self.ctr.ok(["containers", "info", id])).unwrap();
            assert_eq!(info["Image"], Steps::name(*image), "{id}");
            assert_eq!(info["Spec"]["process"]["cwd"], "/", "{id}: {info}");
            let found = info["Labels"]["step"].as_str().map(str::to_owned);
            assert!(found == *label || found == *label_after, "{id}: label {found:?}");
            self.check_root_of(id, *image);
        }
    }

    /// Whether the machine was running container `id` when the power went.
    fn is_in_flight(&self, before: &State, id: &str) -> bool {
        !before.containers.contains_key(id) && self.checker.steps.runs(id)
    }

    /// The root file system of a container that never ran is its image's.
    fn check_root_of(&self, id: &str, image: usize) {
        let target = self.daemon.dir().join(format!("root-{id}"));
        fs::create_dir(&target).unwrap();
        let mount = self.ctr.ok(["snapshots", "mounts", target.to_str().unwrap(), id]);
        let done = Command::new("sh").args(["-ec", &mount]).status().unwrap();
        assert!(done.success(), "{mount}");
        let tree = trees::read(&target);
        assert!(Command::new("umount").arg(&target).status().unwrap().success());
        trees::assert_same(&format!("container {id}"), &tree, &self.checker.trees[image]);
    }

    fn check_leases(&self, before: &State, after: &State) {
        let found: BTreeSet<String> = self.list(&["leases", "ls", "-q"]);
        // Clients hold leases of their own, with other names, while they work.
        let found = found.into_iter().filter(|id| id.starts_with('l')).collect();
        assert_between("leases", &found, &before.leases, &after.leases);
    }

    /// An image can be imported and run; everything can be removed and leaves nothing behind.
    fn check_work_goes_on(&self) {
        let archive = self.daemon.dir().join("again.tar");
        let name = Steps::name(0);
        self.checker.steps.images()[0].write_oci_tar(&archive, &name);
        self.ctr.ok(["images", "import", archive.to_str().unwrap()]);
        let out = self.ctr.ok(["run", "--rm", &name, "again", "cat", "/layers/2"]);
        assert_eq!(out, "layer 2\n");
        for id in self.list(&["containers", "ls", "-q"]) {
            self.ctr.ok(["containers", "delete", &id]);
        }
        for id in self.list(&["leases", "ls", "-q"]) {
            self.ctr.ok(["leases", "delete", &id]);
        }
        // What a client left unfinished is its own to remove, unless it had a lease.
        for row in rows(&self.ctr.ok(["snapshots", "ls"])) {
            if row.last().is_some_and(|kind| kind != "Committed") {
                // The key of a layer that is being unpacked has a space in it.
                let words = if row[0].starts_with("extract-") { 2 } else { 1 };
                let _ = self.ctr.run(["snapshots", "rm", &row[..words].join(" ")]);
            }
        }
        for name in self.list(&["images", "ls", "-q"]) {
            self.ctr.ok(["images", "rm", "--sync", &name]);
        }
        eventually("content and snapshots are collected", || {
            let left = self.ctr.ok(["content", "ls", "-q"]) + &self.ctr.ok(["snapshots", "ls"]);
            if left.lines().count() <= 1 { Ok(()) } else { Err(left) }
        });
        self.daemon.assert_clean();
    }

    fn list(&self, command: &[&str]) -> BTreeSet<String> {
        self.ctr.ok(command.iter().copied()).lines().map(str::to_owned).collect()
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = self.daemon.root().with_file_name("daemon.log");
            let _ = fs::write(&path, self.daemon.log());
            eprintln!("the daemon's whole log: {}", path.display());
        }
    }
}

/// Checks that everything that is in both states was found, and nothing that is in neither.
fn assert_between(
    what: &str,
    found: &BTreeSet<String>,
    before: &BTreeSet<String>,
    after: &BTreeSet<String>,
) {
    let lost: Vec<_> = before.intersection(after).filter(|x| !found.contains(*x)).collect();
    assert!(lost.is_empty(), "{what} lost: {lost:?}; found {found:?}");
    let back: Vec<_> =
        found.iter().filter(|x| !before.contains(*x) && !after.contains(*x)).collect();
    assert!(back.is_empty(), "{what} that should not be there: {back:?}");
}
