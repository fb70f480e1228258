//! Access control lists: kept, taken into layers again, and never inherited from what is below.

use std::path::Path;

use gantry_archive::{ApplyOptions, Changes, DiffOptions, Lowers, apply, diff};

use crate::overlay::{Scratch, upper_options};
use crate::support::{Header, Tar, snapshot, xattrs};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// The kernel's form of a list (linux/posix_acl_xattr.h): owner, one user, group, mask, others.
fn list(owner: u16, user: (u32, u16), group: u16, mask: u16, others: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries = [
        (0x01, owner, NOBODY),
        (0x02, user.1, user.0),
        (0x04, group, NOBODY),
        (0x10, mask, NOBODY),
        (0x20, others, NOBODY),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend(u16::to_le_bytes(permissions));
        bytes.extend(u32::to_le_bytes(id));
    }
    bytes
}

fn layer_with_lists() -> Tar {
    let (access, default) = (list(6, (1234, 4), 4, 6, 0), list(7, (99, 7), 0, 7, 0));
    Tar::new()
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &default)])
        .dir("d")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &access)])
        .header(&Header { mode: 0o660, ..Header::new("d/listed", b'0') })
        .header(&Header { mode: 0o644, ..Header::new("d/plain", b'0') })
}

fn names(path: &Path) -> Vec<String> {
    xattrs(path).into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

fn check(root: &Path) {
    assert_eq!(xattrs(&root.join("d")), [(DEFAULT.into(), list(7, (99, 7), 0, 7, 0))]);
    let listed = xattrs(&root.join("d/listed"));
    assert_eq!(listed, [(ACCESS.into(), list(6, (1234, 4), 4, 6, 0))]);
    let tree = snapshot(root);
    assert_eq!((tree["d/listed"].mode, tree["d/plain"].mode), (0o660, 0o644));
    assert!(names(&root.join("d/plain")).is_empty(), "a layer says what it means");
}

#[test]
fn root_lists_are_kept_and_not_inherited() {
    let temp = tempfile::tempdir().unwrap();
    layer_with_lists().apply(temp.path()).unwrap();
    check(temp.path());
    // The directory with its default list is there when the next layer comes.
    Tar::new()
        .header(&Header { mode: 0o600, ..Header::new("d/new", b'0') })
        .header(&Header { mode: 0o700, ..Header::new("d/sub", b'5') })
        .header(&Header { mode: 0o640, ..Header::new("d/sub/deep", b'0') })
        .header(&Header { mode: 0o640, ..Header::new("d/made/deep", b'0') })
        .header(&Header { mode: 0o644, ..Header::new("d/pipe", b'6') })
        .apply(temp.path())
        .unwrap();
    let tree = snapshot(temp.path());
    for (name, mode) in [
        ("d/new", 0o600),
        ("d/sub", 0o700),
        ("d/sub/deep", 0o640),
        ("d/made", 0o755),
        ("d/made/deep", 0o640),
        ("d/pipe", 0o644),
    ] {
        assert_eq!(tree[name].mode, mode, "{name}");
        assert!(names(&temp.path().join(name)).is_empty(), "{name} has inherited");
    }
    check(temp.path());
}

#[test]
fn root_lists_are_the_same_in_overlays_and_in_layers_made_of_them() {
    let scratch = Scratch::new();
    let base = scratch.make("base");
    let layer = layer_with_lists().finish();
    apply(layer.as_slice(), &base, &upper_options(Lowers::Known(Vec::new()))).unwrap();
    check(&base);
    // A file of the directory is changed: overlayfs copies both, lists included.
    let overlay = scratch.mount(Some("c"), std::slice::from_ref(&base));
    std::fs::write(overlay.merged.path().join("d/listed"), "changed").unwrap();
    let changes = Changes::OverlayUpper { upper: overlay.upper.clone(), userxattr: false };
    let mut made = Vec::new();
    diff(&changes, &mut made, &DiffOptions::default()).unwrap();
    overlay.merged.unmount().unwrap();
    let again = scratch.make("again");
    apply(layer.as_slice(), &again, &ApplyOptions::default()).unwrap();
    apply(made.as_slice(), &again, &ApplyOptions::default()).unwrap();
    check(&again);
    assert_eq!(std::fs::read(again.join("d/listed")).unwrap(), b"changed");
}
