//! Snapshotters that need a filesystem or a program of their own: btrfs, erofs, blockfile. Images
//! are pulled, unpacked and run on them with both clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_testkit::{Daemon, Image, Layer};
use tempfile::TempDir;

use crate::rig::{Client, Rig, rows};

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output();
    let done = done.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A filesystem in a file, mounted until it is dropped.
struct Filesystem {
    dir: TempDir,
}

impl Filesystem {
    fn new(mkfs: &[&str], mebibytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let file = std::fs::File::create_new(&image).unwrap();
        file.set_len(mebibytes << 20).unwrap();
        let image = image.to_str().unwrap();
        run(mkfs[0], &[&mkfs[1..], &[image]].concat());
        let this = Self { dir };
        std::fs::create_dir(this.path()).unwrap();
        run("mount", &["-o", "loop", image, this.path().to_str().unwrap()]);
        this
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        run("umount", &["-R", self.path().to_str().unwrap()]);
    }
}

fn section(snapshotter: &str, settings: &str) -> String {
    format!("[plugins.\"io.containerd.snapshotter.v1.{snapshotter}\"]\n  {settings}")
}

/// Layers that replace, delete and hide what is below them.
fn image() -> Image {
    let second = Layer::new()
        .dir("data/sub", 0o755)
        .file("data/kept", 0o640, "kept\n")
        .file("data/gone", 0o644, "gone\n")
        .file("data/sub/hidden", 0o644, "hidden\n");
    let third =
        Layer::new().whiteout("data/gone").opaque("data/sub").file("data/sub/new", 0o4755, "new\n");
    Image::builder().layer(second).layer(third).build()
}

const LOOK: &str = "cd /data && ls -lR . | awk '{print $1, $5, $9}' && cat kept sub/new";
const SEEN: &str = "-rw-r----- 5 kept\n";

/// The states that introspection tells.
fn state(rig: &Rig, snapshotter: &str) -> String {
    let plugins = rows(&rig.client.ok(["plugins", "ls"]));
    let row = plugins.iter().find(|r| r[0].contains("snapshotter.v1") && r[1] == snapshotter);
    row.and_then(|row| row.last()).expect("it is listed").clone()
}

fn works_on(daemon: Daemon, snapshotter: &str) {
    let mut rig = Rig::with(daemon, Client::Gantry);
    assert_eq!(state(&rig, snapshotter), "ok");
    let reference = image().push(rig.registry(), "layers");
    let (ours, theirs) = (rig.daemon.gantry(), rig.daemon.ctr());
    let on = ["--snapshotter", snapshotter];
    ours.ok([&["images", "pull", "--plain-http"], &on[..], &[&reference]].concat());
    for (client, id) in [(&ours, "c1"), (&theirs, "c2")] {
        let run = [&["run", "--rm"], &on[..], &[&reference, id, "sh", "-c", LOOK]].concat();
        let seen = client.ok(run);
        assert!(seen.contains(SEEN) && seen.contains("-rwsr-xr-x 4 new"), "{seen}");
        assert!(!seen.contains("gone") && !seen.contains("hidden"), "{seen}");
        assert!(seen.ends_with("kept\nnew\n"), "{seen}");
    }
    ours.ok([&["run", "-d"], &on[..], &[&reference, "c3", "sleep", "1000"]].concat());
    ours.ok(["tasks", "exec", "--exec-id", "e", "c3", "sh", "-c", "echo written > /data/file"]);
    rig.daemon.restart();
    let read = ["tasks", "exec", "--exec-id", "e", "c3", "cat", "/data/file"];
    assert_eq!(ours.ok(read), "written\n");
    // What it wrote is a layer by itself, and an image on it runs.
    ours.ok(["tasks", "kill", "--signal", "SIGKILL", "c3"]);
    ours.ok(["tasks", "delete", "--force", "c3"]);
    let list = rows(&ours.ok([&["snapshots"], &on[..], &["ls"]].concat()));
    let row = list.iter().find(|row| row[0] == "c3").expect("the container's snapshot");
    let diff = [&["snapshots"], &on[..], &["diff", "--keep", "c3", &row[1]]].concat();
    assert!(!ours.ok(diff).is_empty());
    ours.ok(["containers", "delete", "c3"]);
    // Debian's client unpacks by itself, layer by layer.
    ours.ok(["images", "rm", "--sync", &reference]);
    theirs.ok([&["images", "pull", "--plain-http"], &on[..], &[&reference]].concat());
    let run = [&["run", "--rm"], &on[..], &[&reference, "c4", "cat", "/data/kept"]].concat();
    assert_eq!(theirs.ok(run), "kept\n");
    ours.ok(["images", "rm", "--sync", &reference]);
    rig.daemon.stop();
    rig.daemon.assert_clean();
}

/// A scratch file with nothing in it.
fn scratch(dir: &Path) -> PathBuf {
    let made = Filesystem::new(&["mkfs.ext4", "-q", "-F", "-O", "^has_journal"], 64);
    std::fs::remove_dir(made.path().join("lost+found")).unwrap();
    run("sync", &["-f", made.path().to_str().unwrap()]);
    let image = made.dir.path().join("image");
    run("umount", &[made.path().to_str().unwrap()]);
    let scratch = dir.join("scratch");
    run("cp", &["--sparse=always", image.to_str().unwrap(), scratch.to_str().unwrap()]);
    // What is dropped unmounts it.
    run("mount", &["-o", "loop", image.to_str().unwrap(), made.path().to_str().unwrap()]);
    scratch
}

#[test]
fn root_btrfs() {
    let disk = Filesystem::new(&["mkfs.btrfs", "-q", "-m", "single"], 512);
    let root = format!("root_path = \"{}\"", disk.path().join("snapshots").display());
    works_on(Daemon::gantryd().config(&section("btrfs", &root)).start(), "btrfs");
}

#[test]
fn root_erofs() {
    works_on(Daemon::gantryd().start(), "erofs");
}

#[test]
fn root_erofs_with_bounded_containers() {
    let config = section("erofs", "default_size = \"64M\"");
    works_on(Daemon::gantryd().config(&config).start(), "erofs");
}

#[test]
fn root_blockfile() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("scratch_file = \"{}\"", scratch(dir.path()).display());
    works_on(Daemon::gantryd().config(&section("blockfile", &file)).start(), "blockfile");
}

#[test]
fn root_what_cannot_work_is_skipped_with_the_reason() {
    let disk = Filesystem::new(&["mkfs.ext4", "-q", "-F"], 16);
    let root = format!("root_path = \"{}\"", disk.path().join("snapshots").display());
    let config = section("btrfs", &root) + "\n" + &section("erofs", "enable_fsverity = true");
    let rig = Rig::with(Daemon::gantryd().config(&config).start(), Client::Ctr);
    assert_eq!(state(&rig, "btrfs"), "skip");
    assert_eq!(state(&rig, "blockfile"), "skip");
    // Asked for and not there is an error, not a skip.
    assert_eq!(state(&rig, "erofs"), "error");
    let detail = rig.client.ok(["plugins", "ls", "-d", "id==btrfs"]);
    assert!(detail.contains("is not on a btrfs") && detail.contains("skip plugin"), "{detail}");
    let detail = rig.client.ok(["plugins", "ls", "-d", "id==blockfile"]);
    assert!(detail.contains("no scratch_file is configured"), "{detail}");
    assert!(!disk.path().join("snapshots").exists());
    let error = rig.client.fail(["snapshots", "--snapshotter", "btrfs", "ls"]);
    assert!(error.contains("snapshotter not loaded: btrfs"), "{error}");
}

/// Layers become erofs images, go to a registry and come back, and are mounted as they are.
#[test]
fn root_an_image_of_erofs_layers_runs() {
    let daemon = Daemon::gantryd()
        .config("[plugins.\"io.containerd.service.v1.diff-service\"]")
        .config("  default = [\"erofs\", \"walking\"]")
        .config("[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]")
        .config("  platform = \"linux/amd64\"\n  snapshotter = \"erofs\"\n  differ = \"erofs\"");
    let mut rig = Rig::with(daemon.start(), Client::Gantry);
    let reference = rig.pull(&Image::builder().layers(3).build(), "layers:1");
    let converted = format!("{}/erofs:1", rig.registry().host());
    rig.client.ok(["images", "convert", "--erofs", "--oci", &reference, &converted]);
    let run = ["run", "--rm", "--snapshotter", "erofs", &converted, "c1", "cat", "/layers/2"];
    assert_eq!(rig.client.ok(run), "layer 2\n");
    rig.client.ok(["images", "push", "--plain-http", &converted]);
    rig.client.ok(["images", "rm", "--sync", &converted]);
    rig.client.ok(["images", "pull", "--plain-http", "--snapshotter", "erofs", &converted]);
    assert_eq!(rig.client.ok(run), "layer 2\n");
    let refused = rig.client.fail(["images", "pull", "--plain-http", &converted]);
    assert!(refused.contains("erofs"), "{refused}");
    rig.client.ok(["images", "rm", "--sync", &converted]);
    rig.daemon.assert_clean();
}
