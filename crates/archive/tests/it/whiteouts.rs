//! Deletions: order, depth, and the two spellings.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gantry_archive::{ApplyOptions, Lowers, Target, settle};

use crate::support::{Header, Tar, paths, snapshot};

fn base() -> Tar {
    Tar::new().dir("d").file("d/old", "1").dir("d/sub").file("d/sub/old", "1").file("f", "1")
}

fn upper(lowers: Lowers) -> ApplyOptions {
    ApplyOptions {
        target: Target::OverlayUpper { userxattr: false },
        lowers,
        ..ApplyOptions::default()
    }
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.mode() & 0o170_000 == 0o020_000 && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", value.as_mut_slice()) == Ok(1)
}

#[test]
fn root_a_tree_loses_what_is_whited_out() {
    let temp = tempfile::tempdir().unwrap();
    base().apply(temp.path()).unwrap();
    Tar::new()
        .file(".wh.f", "")
        .file("d/.wh.sub", "")
        .file("x/.wh.y", "")
        .apply(temp.path())
        .unwrap();
    assert_eq!(paths(temp.path()), ["d", "d/old"]);
}

#[test]
fn root_a_whiteout_never_reaches_its_own_layer() {
    for whiteout_first in [true, false] {
        let temp = tempfile::tempdir().unwrap();
        base().apply(temp.path()).unwrap();
        let wipe = |t: Tar| t.file(".wh.d", "").file(".wh.f", "");
        let add = |t: Tar| t.file("d/sub/new", "2").file("f", "2");
        let tar = if whiteout_first { add(wipe(Tar::new())) } else { wipe(add(Tar::new())) };
        tar.apply(temp.path()).unwrap();
        assert_eq!(paths(temp.path()), ["d", "d/sub", "d/sub/new", "f"], "{whiteout_first}");
        assert_eq!(std::fs::read(temp.path().join("f")).unwrap(), b"2");
    }
}

#[test]
fn root_an_opaque_directory_keeps_what_its_layer_brings_in_any_order() {
    for opaque_first in [true, false] {
        let temp = tempfile::tempdir().unwrap();
        base().apply(temp.path()).unwrap();
        let opaque = |t: Tar| t.file("d/.wh..wh..opq", "");
        let add = |t: Tar| t.file("d/new", "2").file("d/sub/new", "2");
        let tar = if opaque_first { add(opaque(Tar::new())) } else { opaque(add(Tar::new())) };
        tar.apply(temp.path()).unwrap();
        assert_eq!(paths(temp.path()), ["d", "d/new", "d/sub", "d/sub/new", "f"], "{opaque_first}");
    }
}

#[test]
fn root_an_upper_directory_gets_overlay_marks() {
    let temp = tempfile::tempdir().unwrap();
    let (low, up) = (temp.path().join("low"), temp.path().join("up"));
    std::fs::create_dir(&low).unwrap();
    std::fs::create_dir(&up).unwrap();
    base().apply(&low).unwrap();
    Tar::new()
        .file(".wh.f", "")
        .file(".wh.never", "")
        .file("d/.wh..wh..opq", "")
        .file("d/new", "2")
        .apply_with(&up, &upper(Lowers::Known(vec![low.clone()])))
        .unwrap();
    assert!(is_whiteout(&up.join("f")));
    assert!(is_opaque(&up.join("d")));
    // Nothing to hide below, so nothing is written.
    assert_eq!(paths(&up), ["d", "d/new", "f"]);
    // What the parent looked like below is kept.
    assert_eq!(up.join("d").metadata().unwrap().mtime(), 1_600_000_000);
}

#[test]
fn root_a_directory_over_its_own_whiteout_is_opaque() {
    let temp = tempfile::tempdir().unwrap();
    let (low, up) = (temp.path().join("low"), temp.path().join("up"));
    std::fs::create_dir(&low).unwrap();
    std::fs::create_dir(&up).unwrap();
    base().apply(&low).unwrap();
    for lowers in [Lowers::Known(vec![low.clone()]), Lowers::Unknown] {
        Tar::new().file(".wh.d", "").dir("d").apply_with(&up, &upper(lowers)).unwrap();
        assert!(is_opaque(&up.join("d")));
        std::fs::remove_dir_all(up.join("d")).unwrap();
    }
}

#[test]
fn root_lower_layers_are_seen_through() {
    let temp = tempfile::tempdir().unwrap();
    let (low, up) = (temp.path().join("low"), temp.path().join("up"));
    std::fs::create_dir(&low).unwrap();
    std::fs::create_dir(&up).unwrap();
    base().symlink("link", "d/sub").apply(&low).unwrap();
    // Through a symlink of the lower layer, and a hard link to a file of it.
    Tar::new()
        .file("link/through", "2")
        .hardlink("hard", "d/old")
        .apply_with(&up, &upper(Lowers::Known(vec![low.clone()])))
        .unwrap();
    assert_eq!(paths(&up), ["d", "d/old", "d/sub", "d/sub/through", "hard"]);
    assert_eq!(
        up.join("hard").metadata().unwrap().ino(),
        up.join("d/old").metadata().unwrap().ino()
    );
    assert_eq!(low.join("d/old").metadata().unwrap().nlink(), 1);
}

#[test]
fn root_without_the_lower_layers_a_layer_must_say_everything() {
    let temp = tempfile::tempdir().unwrap();
    let refused = [
        Tar::new().hardlink("hard", "f"),
        Tar::new().dir("d").hardlink("hard", "d/f"),
        Tar::new().file("d/.wh.old", ""),
        Tar::new().file("d/.wh..wh..opq", ""),
        Tar::new().file("d/d/new", "2").file("d/.wh..wh..opq", ""),
    ];
    for tar in refused {
        let up = tempfile::tempdir_in(temp.path()).unwrap();
        let err = tar.apply_with(up.path(), &upper(Lowers::Unknown)).unwrap_err();
        assert!(err.is_failed_precondition(), "{err}");
    }
    let up = tempfile::tempdir_in(temp.path()).unwrap();
    Tar::new()
        .dir("d")
        .file("d/new", "2")
        .file("d/.wh.old", "")
        .hardlink("hard", "d/new")
        .file(".wh.f", "")
        .apply_with(up.path(), &upper(Lowers::Unknown))
        .unwrap();
    assert!(is_whiteout(&up.path().join("f")) && is_whiteout(&up.path().join("d/old")));
    assert!(!is_opaque(&up.path().join("d")));
}

#[test]
fn root_parents_that_only_lower_layers_name_look_as_they_do_there() {
    let temp = tempfile::tempdir().unwrap();
    let dir = |name: &str| tempfile::Builder::new().prefix(name).tempdir_in(temp.path()).unwrap();
    let low = dir("low");
    let header = Header { mode: 0o1750, uid: 3, mtime: 9, ..Header::new("d/e", b'5') };
    Tar::new()
        .dir("d")
        .pax(&[("SCHILY.xattr.user.x", b"1")])
        .header(&header)
        .symlink("link", "d")
        .file("file", "")
        .apply(low.path())
        .unwrap();
    let lowers = [low.path().to_owned()];
    let unknown = upper(Lowers::Unknown);
    let up = dir("up");
    let applied = Tar::new()
        .file("d/e/new", "2")
        .file("d/e/.wh.gone", "")
        .file("other/new", "2")
        .file("named/new", "2")
        .header(&Header { mode: 0o700, ..Header::new("named", b'5') })
        .apply_with(up.path(), &unknown)
        .unwrap();
    settle(up.path(), unknown.target, &lowers, &applied.unsettled).unwrap();
    let tree = snapshot(up.path());
    let e = &tree["d/e"];
    assert_eq!((e.mode, e.owner, e.mtime), (0o1750, (3, 0), (9, 0)));
    assert_eq!(e.xattrs, [(b"user.x".to_vec(), b"1".to_vec())]);
    assert_eq!((tree["other"].mode, tree["named"].mode), (0o755, 0o700));
    assert!(!tree.contains_key("d/e/gone"), "the whiteout hides nothing");

    for (name, what) in [("link/new", "a symlink"), ("file/new", "a file")] {
        let up = dir("up");
        let applied = Tar::new().file(name, "2").apply_with(up.path(), &unknown).unwrap();
        let err = settle(up.path(), unknown.target, &lowers, &applied.unsettled).unwrap_err();
        assert!(err.is_failed_precondition(), "{what}: {err}");
    }
}

#[test]
fn root_a_file_over_a_lower_directory_and_back() {
    let temp = tempfile::tempdir().unwrap();
    let (low, up) = (temp.path().join("low"), temp.path().join("up"));
    std::fs::create_dir(&low).unwrap();
    std::fs::create_dir(&up).unwrap();
    base().apply(&low).unwrap();
    Tar::new()
        .file("d", "now a file")
        .dir("d")
        .file("d/new", "2")
        .apply_with(&up, &upper(Lowers::Known(vec![low.clone()])))
        .unwrap();
    assert!(is_opaque(&up.join("d")));
    assert_eq!(paths(&up), ["d", "d/new"]);
}
