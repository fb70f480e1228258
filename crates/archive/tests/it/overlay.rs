//! Real overlay mounts: what the kernel shows of the marks we write, and what it writes itself.

use std::path::{Path, PathBuf};

use gantry_archive::{
    ApplyOptions, Changes, Compression, DiffOptions, Lowers, Target, apply, diff,
};
use gantry_mount::{Mount, TempMount, TempRoot};

use crate::support::{Tar, snapshot};

/// A mounted overlay and its directories; the upper one on a file system of its own, since an
/// overlay cannot lie on another.
pub(crate) struct Overlay {
    pub(crate) merged: TempMount,
    pub(crate) upper: PathBuf,
}

/// A directory on a tmpfs, unmounted when dropped.
pub(crate) struct Scratch {
    tmpfs: Option<TempMount>,
    dir: tempfile::TempDir,
    temp: TempRoot,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let temp = TempRoot::open(dir.path().join("mounts")).unwrap();
        let tmpfs = temp.mount(&[Mount::new("tmpfs", "tmpfs", ["mode=0755"])]).unwrap();
        Self { tmpfs: Some(tmpfs), dir, temp }
    }

    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let root = self.tmpfs.as_ref().map_or(self.dir.path(), TempMount::path);
        let path = root.join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// Mounts `lowers` (newest first), with a fresh upper directory if `name` is given.
    pub(crate) fn mount(&self, name: Option<&str>, lowers: &[PathBuf]) -> Overlay {
        let joined: Vec<&str> = lowers.iter().map(|l| l.to_str().unwrap()).collect();
        let mut options = vec![format!("lowerdir={}", joined.join(":"))];
        if crate::userns::is_inside() {
            options.push("userxattr".to_owned());
        }
        let mut upper = PathBuf::new();
        if let Some(name) = name {
            upper = self.make(name);
            let work = self.make(&format!("{name}.work"));
            options.push(format!("upperdir={}", upper.display()));
            options.push(format!("workdir={}", work.display()));
        }
        let mount = Mount::new("overlay", "overlay", options);
        Overlay { merged: self.temp.mount(&[mount]).unwrap(), upper }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.tmpfs.take());
    }
}

pub(crate) fn upper_options(lowers: Lowers) -> ApplyOptions {
    ApplyOptions {
        target: Target::OverlayUpper { userxattr: crate::userns::is_inside() },
        lowers,
        ..ApplyOptions::default()
    }
}

fn layer_of(changes: &Changes) -> Vec<u8> {
    let options = DiffOptions {
        compression: Compression::None,
        precise_times: true,
        ..DiffOptions::default()
    };
    let mut layer = Vec::new();
    diff(changes, &mut layer, &options).unwrap();
    layer
}

#[test]
fn root_a_containers_upper_directory_becomes_the_layer_that_makes_its_tree() {
    let scratch = Scratch::new();
    let base = scratch.make("base");
    Tar::new()
        .dir("d")
        .file("d/old", "1")
        .dir("e")
        .file("e/gone", "1")
        .dir("r")
        .file("r/x", "1")
        .file("f", "1")
        .symlink("s", "f")
        .apply(&base)
        .unwrap();
    let container = scratch.mount(Some("c"), std::slice::from_ref(&base));
    let at = container.merged.path();
    std::fs::write(at.join("f"), "changed").unwrap();
    std::fs::remove_file(at.join("d/old")).unwrap();
    std::fs::remove_dir_all(at.join("e")).unwrap();
    std::fs::create_dir(at.join("e")).unwrap();
    std::fs::write(at.join("e/new"), "2").unwrap();
    std::fs::remove_dir_all(at.join("r")).unwrap();
    std::fs::remove_file(at.join("s")).unwrap();
    std::fs::hard_link(at.join("f"), at.join("g")).unwrap();
    let want = snapshot(at);

    let upper =
        layer_of(&Changes::OverlayUpper { upper: container.upper.clone(), userxattr: false });
    let trees = layer_of(&Changes::Trees { lower: Some(base.clone()), upper: at.to_path_buf() });
    for layer in [upper, trees] {
        let tree = scratch.make("tree");
        copy(&base, &tree);
        apply(layer.as_slice(), &tree, &ApplyOptions::default()).unwrap();
        assert_eq!(snapshot(&tree), want);
        std::fs::remove_dir_all(&tree).unwrap();

        let next = scratch.make("next");
        let lowers = Lowers::Known(vec![base.clone()]);
        apply(layer.as_slice(), &next, &upper_options(lowers)).unwrap();
        let merged = scratch.mount(None, &[next.clone(), base.clone()]);
        assert_eq!(snapshot(merged.merged.path()), want);
        merged.merged.unmount().unwrap();
        std::fs::remove_dir_all(&next).unwrap();
    }
    container.merged.unmount().unwrap();
}

#[test]
fn root_a_mounted_overlay_is_a_tree() {
    let scratch = Scratch::new();
    let base = scratch.make("base");
    Tar::new().dir("d").file("d/old", "1").file("f", "1").apply(&base).unwrap();
    let overlay = scratch.mount(Some("c"), std::slice::from_ref(&base));
    Tar::new()
        .file("d/.wh..wh..opq", "")
        .file("d/new", "2")
        .file(".wh.f", "")
        .hardlink("h", "d/new")
        .apply(overlay.merged.path())
        .unwrap();
    let names: Vec<_> = snapshot(overlay.merged.path()).into_keys().collect();
    assert_eq!(names, ["d", "d/new", "h"]);
    overlay.merged.unmount().unwrap();
}

#[test]
fn root_moved_directories_are_refused_by_name() {
    let scratch = Scratch::new();
    let upper = scratch.make("upper");
    std::fs::create_dir(upper.join("d")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(upper.join("d"), "trusted.overlay.redirect", b"/e", flags).unwrap();
    let changes = Changes::OverlayUpper { upper, userxattr: false };
    let err = diff(&changes, std::io::sink(), &DiffOptions::default()).unwrap_err();
    assert!(err.is_failed_precondition(), "{err}");
}

/// Copies a tree by way of a layer.
pub(crate) fn copy(from: &Path, to: &Path) {
    let layer = layer_of(&Changes::Trees { lower: None, upper: from.to_owned() });
    apply(layer.as_slice(), to, &ApplyOptions::default()).unwrap();
}
