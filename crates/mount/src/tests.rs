//! Unit tests of the crate; those named `root_` mount things below a temporary directory.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::mount::{MountFlags, MountPropagationFlags};
use tempfile::TempDir;

use super::*;

#[test]
fn options_are_told_apart() {
    let parsed = Options::parse(&["rbind", "ro", "nosuid", "rslave", "uid=5", "loop", "defaults"]);
    assert_eq!(parsed.bind, Some(true));
    assert_eq!(parsed.flags, MountFlags::RDONLY | MountFlags::NOSUID);
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    assert_eq!(parsed.propagation, Some(slave));
    assert!(parsed.looped && parsed.flags_given);
    assert_eq!(parsed.data, ["uid=5"]);
    let last_wins = Options::parse(&["ro", "rw"]);
    assert!(last_wins.flags.is_empty() && last_wins.flags_given);
    assert!(!Options::parse(&["uidmap=0:1:2", "x"]).flags_given);
}

#[test]
fn read_only_forms() {
    let overlay = Mount::new(
        "overlay",
        "overlay",
        ["volatile", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b", "index=off"],
    );
    assert_eq!(overlay.temporary().options, overlay.options[1..]);
    assert!(overlay.is_writable());
    let ro = overlay.read_only();
    assert_eq!(ro.options, ["lowerdir=/u:/a:/b", "index=off"]);
    assert!(!ro.is_writable());
    assert_eq!(ro.read_only(), ro);
    let bind = Mount::new("bind", "/x", ["rw", "rbind"]);
    assert_eq!(bind.read_only().options, ["rbind", "ro"]);
}

#[test]
fn mount_table_lines() {
    let text =
        br"36 35 98:0 /mnt1 /mnt\0402/a\134b rw,noatime shared:1 master:2 - ext3 /dev/root rw
23 28 0:21 / /proc rw - proc proc
";
    let table = parse_mountinfo(text).unwrap();
    assert_eq!(table[0].mount_point, PathBuf::from(r"/mnt 2/a\b"));
    assert_eq!(table[0].propagation, ["shared:1", "master:2"]);
    assert_eq!((table[0].id, table[0].parent, table[0].device.as_str()), (36, 35, "98:0"));
    assert_eq!((table[1].fs_type.as_str(), table[1].super_options.as_str()), ("proc", ""));
    for bad in [&b"x"[..], b"1 2 3:4 / / rw shared:1", b"a 2 3:4 / / rw - t s o"] {
        assert!(parse_mountinfo(bad).is_err());
    }
    assert!(!mountinfo().unwrap().is_empty());
}

proptest! {
    #[test]
    fn mount_table_never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_mountinfo(&text);
    }
}

/// A temporary directory on a tmpfs of its own, all unmounted at the end.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(&Mount::new("tmpfs", "lab", ["size=64m"]), dir.path()).unwrap();
        mount(&Mount::new("", "", ["remount", "size=32m"]), dir.path()).unwrap();
        Self { dir }
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        unmount_recursive(self.dir.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn root_bind_takes_flags_and_leaves_the_source() {
    let lab = Lab::new();
    let (source, target) = (lab.dir("source"), lab.dir("target"));
    lab.file("source/file", "x");
    let ro = Mount::new("bind", text(&source), ["rbind", "ro", "noexec", "rprivate"]);
    mount_all(&[ro], &target).unwrap();
    assert!(is_mount_point(&target).unwrap());
    assert!(!is_mount_point(&source).unwrap());
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "x");
    let err = fs::write(target.join("file"), "y").unwrap_err();
    assert_eq!(err.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    fs::write(source.join("file"), "y").unwrap();
    let line = mountinfo().unwrap().into_iter().find(|m| m.mount_point == target).unwrap();
    assert!(line.options.contains("noexec"), "{}", line.options);
    unmount(&target, UnmountFlags::default()).unwrap();
    assert!(!is_mount_point(&target).unwrap());
    unmount(&target, UnmountFlags::default()).unwrap();
    unmount(&target.join("missing"), UnmountFlags::default()).unwrap();
}

#[test]
fn root_failed_set_leaves_nothing() {
    let lab = Lab::new();
    let target = lab.dir("target");
    let good = Mount::new("tmpfs", "t", [""; 0]);
    let bad = Mount::new("bind", "/does/not/exist", [""; 0]);
    let err = mount_all(&[good.clone(), good, bad], &target).unwrap_err();
    assert!(err.is_not_found(), "{err}");
    assert!(err.message().contains("/does/not/exist"), "{err}");
    assert!(!is_mount_point(&target).unwrap());
}

#[test]
fn root_target_inside_does_not_escape() {
    let lab = Lab::new();
    let target = lab.dir("root");
    lab.dir("root/inside/etc");
    lab.dir("outside/etc");
    symlink("/inside", target.join("link")).unwrap();
    symlink("../../outside", target.join("inside/up")).unwrap();
    let tmpfs = |at: &str| Mount { target: at.into(), ..Mount::new("tmpfs", "t", [""; 0]) };
    mount_all(&[tmpfs("link/etc")], &target).unwrap();
    assert!(is_mount_point(&target.join("inside/etc")).unwrap());
    assert!(mount_all(&[tmpfs("inside/up/etc")], &target).unwrap_err().is_not_found());
    assert!(!is_mount_point(&lab.dir("outside/etc")).unwrap());
    // The first of two is undone where it is.
    unmount(&target.join("inside/etc"), UnmountFlags::default()).unwrap();
    assert!(mount_all(&[tmpfs("link/etc"), tmpfs("nowhere")], &target).is_err());
    assert!(!is_mount_point(&target.join("inside/etc")).unwrap());
}

fn layers(lab: &Lab, parent: &str, count: usize) -> String {
    let dirs: Vec<String> = (0..count)
        .map(|i| {
            lab.file(&format!("{parent}/{i}/fs/only-{i}"), "");
            lab.file(&format!("{parent}/{i}/fs/top"), &i.to_string());
            text(&lab.dir(&format!("{parent}/{i}/fs")))
        })
        .collect();
    dirs.join(":")
}

#[test]
fn root_overlay_of_many_layers() {
    let lab = Lab::new();
    // Few layers fit a page; many go one by one; names too long for that go by short paths.
    for (parent, count) in [("few".to_owned(), 3), ("m".repeat(60), 120), ("n".repeat(240), 120)] {
        let lower = layers(&lab, &parent, count);
        let (upper, work) = (lab.dir("upper"), lab.dir("work"));
        let target = lab.dir("target");
        let options = [
            format!("workdir={}", text(&work)),
            format!("upperdir={}", text(&upper)),
            format!("lowerdir={lower}"),
            "index=off".into(),
        ];
        mount_all(&[Mount::new("overlay", "overlay", options)], &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("top")).unwrap(), "0", "topmost comes first");
        assert!(target.join(format!("only-{}", count - 1)).exists());
        fs::write(target.join("new"), "").unwrap();
        assert!(upper.join("new").exists());
        unmount(&target, UnmountFlags::default()).unwrap();
        let ro = ["ro".into(), format!("lowerdir={lower}")];
        mount_all(&[Mount::new("overlay", "overlay", ro)], &target).unwrap();
        assert!(fs::write(target.join("new"), "").is_err());
        unmount(&target, UnmountFlags::default()).unwrap();
    }
}

#[test]
fn root_idmapped_bind_and_overlay() {
    let lab = Lab::new();
    let target = lab.dir("target");
    let lower = layers(&lab, "layers", 2);
    let mapped = lab.dir("layers/1/fs");
    chown(mapped.join("only-1"), Some(7), Some(8)).unwrap();
    let maps = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];
    let bind = Mount::new("bind", text(&mapped), maps);
    mount_all(&[bind], &target).unwrap();
    let stat = fs::metadata(target.join("only-1")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (100_007, 200_008));
    unmount(&target, UnmountFlags::default()).unwrap();

    let layers = [format!("lowerdir={lower}")];
    let options = maps.iter().map(|m| (*m).to_owned()).chain(layers);
    mount_all(&[Mount::new("overlay", "overlay", options)], &target).unwrap();
    let stat = fs::metadata(target.join("only-1")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (100_007, 200_008));
    unmount(&target, UnmountFlags::default()).unwrap();
    let helpers = mountinfo().unwrap().into_iter().filter(|m| {
        m.mount_point.to_string_lossy().contains(&format!("gantry-idmap-{}", std::process::id()))
    });
    assert_eq!(helpers.count(), 0);

    let half = Mount::new("bind", text(&mapped), ["uidmap=0:1:1"]);
    assert!(mount_all(&[half], &target).unwrap_err().is_invalid_argument());
}

#[test]
fn root_loop_option_mounts_a_file() {
    let lab = Lab::new();
    let target = lab.dir("target");
    let image = lab.file("image", "");
    fs::File::options().write(true).open(&image).unwrap().set_len(8 << 20).unwrap();
    let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap();
    assert!(made.success());
    mount_all(&[Mount::new("ext4", text(&image), ["loop", "ro"])], &target).unwrap();
    assert!(target.join("lost+found").exists());
    unmount(&target, UnmountFlags::default()).unwrap();
}

#[test]
fn root_busy_mount_is_detached() {
    let lab = Lab::new();
    let target = lab.dir("target");
    mount_all(&[Mount::new("tmpfs", "t", [""; 0])], &target).unwrap();
    let held = fs::File::create(target.join("held")).unwrap();
    unmount(&target, UnmountFlags::default()).unwrap();
    assert!(!is_mount_point(&target).unwrap());
    drop(held);
}

#[test]
fn root_recursive_unmount_takes_stacks_and_children() {
    let lab = Lab::new();
    let target = lab.dir("target");
    let tmpfs = Mount::new("tmpfs", "t", [""; 0]);
    for flags in [UnmountFlags::default(), UnmountFlags::DETACH] {
        mount_all(&[tmpfs.clone(), tmpfs.clone()], &target).unwrap();
        fs::create_dir(target.join("a b")).unwrap();
        mount_all(&[tmpfs.clone(), tmpfs.clone()], &target.join("a b")).unwrap();
        unmount_recursive(&target, flags).unwrap();
        assert!(!is_mount_point(&target).unwrap());
        let table = mountinfo().unwrap();
        assert!(table.iter().all(|m| !m.mount_point.starts_with(&target)));
    }
    unmount_recursive(&target.join("missing"), UnmountFlags::default()).unwrap();
}

#[test]
fn root_temporary_mounts_go_and_leftovers_are_cleaned() {
    let lab = Lab::new();
    let source = lab.dir("source");
    lab.file("source/file", "x");
    let bind = Mount::new("bind", text(&source), ["rbind"]);
    let root = TempRoot::open(lab.dir.path().join("temp")).unwrap();
    let temp = root.mount(std::slice::from_ref(&bind)).unwrap();
    let path = temp.path().to_owned();
    assert!(path.join("file").exists());
    temp.unmount().unwrap();
    assert!(!path.exists());
    let dropped = root.mount_readonly(std::slice::from_ref(&bind)).unwrap();
    assert!(fs::write(dropped.path().join("file"), "").is_err());
    let path = dropped.path().to_owned();
    drop(dropped);
    assert!(!path.exists());
    assert!(root.mount(&[Mount::new("bind", "/no/such", [""; 0])]).is_err());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    // A crash: the mount stays, and so does what is mounted.
    std::mem::forget(root.mount(&[bind]).unwrap());
    let root = TempRoot::open(root.path()).unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    assert!(source.join("file").exists());
}
