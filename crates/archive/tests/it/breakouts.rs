//! Archives that try to leave the directory they are applied onto.

use std::os::unix::fs::symlink;
use std::path::Path;

use gantry_archive::{ApplyOptions, Limits, Target};
use gantry_errdefs::Class;

use crate::support::{Header, Tar, snapshot};

/// What must come of an attack.
enum Expect {
    /// InvalidArgument.
    Refused,
    /// The archive applies, and this path inside exists.
    Inside(&'static str),
    /// It applies.
    Applied,
}
use Expect::{Applied, Inside, Refused};

/// Runs one attack in a fresh directory, both ways, and checks that nothing outside changed.
/// `{OUT}` in names is the absolute path of the directory outside.
fn attack(name: &str, tar: impl Fn(&str) -> Tar, expect: &Expect) {
    for target in [Target::Tree, Target::OverlayUpper { userxattr: false }] {
        let temp = tempfile::tempdir().unwrap();
        let outside = temp.path().join("outside");
        let root = temp.path().join("root");
        std::fs::create_dir(&outside).unwrap();
        std::fs::create_dir(&root).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        std::fs::create_dir(outside.join("dir")).unwrap();
        let before = snapshot(&outside);
        let around = names(temp.path());
        let options = ApplyOptions {
            target,
            limits: Limits {
                entry_count_max: 100,
                device_count_max: 8,
                file_bytes_max: 1 << 30,
                total_bytes_max: 2 << 30,
                ..Limits::default()
            },
            ..ApplyOptions::default()
        };
        let result = tar(outside.to_str().unwrap()).apply_with(&root, &options);
        assert_eq!(snapshot(&outside), before, "{name} {target:?} changed what is outside");
        assert_eq!(names(temp.path()), around, "{name} {target:?} made something outside");
        match (expect, result) {
            (Refused, Err(err)) => {
                assert_eq!(err.class(), Class::InvalidArgument, "{name}: {err}");
                assert!(err.message().contains("entry") || err.message().contains("archive"));
            }
            (Refused, Ok(_)) => panic!("{name} {target:?} was applied"),
            (_, Err(err)) => panic!("{name} {target:?} was refused: {err}"),
            (Inside(path), Ok(_)) => {
                assert!(root.join(path).symlink_metadata().is_ok(), "{name}: {path} is missing");
            }
            (Applied, Ok(_)) => {}
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn device(name: &str, kind: u8, major: u32, minor: u32) -> Header {
    Header { device: (major, minor), ..Header::new(name, kind) }
}

#[test]
fn root_paths_that_climb() {
    attack("dotdot", |_| Tar::new().file("../outside/x", "x"), &Refused);
    attack("dotdot deep", |_| Tar::new().file("a/../../outside/x", "x"), &Refused);
    attack("dotdot alone", |_| Tar::new().dir(".."), &Refused);
    attack("dotdot dir", |_| Tar::new().dir("../new"), &Refused);
    attack("dotdot inside", |_| Tar::new().file("a/../b", "x"), &Inside("b"));
    attack("dot", |_| Tar::new().dir("./").file("./a", "x"), &Inside("a"));
    attack("absolute", |_| Tar::new().file("/etc/x", "x"), &Inside("etc/x"));
    attack("absolute out", |out| Tar::new().file(format!("{out}/secret"), "x"), &Applied);
    attack("slashes", |_| Tar::new().file("////a//b", "x"), &Inside("a/b"));
    attack("pax path", |_| Tar::new().pax(&[("path", b"../outside/x")]).file("a", "x"), &Refused);
    let nul = |_: &str| Tar::new().pax(&[("path", b"a\0b")]).file("a", "x");
    attack("pax nul", nul, &Refused);
    let name = "n".repeat(256);
    attack("long name", |_| Tar::new().pax(&[("path", name.as_bytes())]).file("a", "x"), &Refused);
    let path = "d/".repeat(2100);
    attack("long path", |_| Tar::new().pax(&[("path", path.as_bytes())]).file("a", "x"), &Refused);
}

#[test]
fn root_symlinks_are_followed_inside_only() {
    let via = |to: &'static str, then: &'static str| {
        move |_: &str| Tar::new().symlink("l", to).file(then, "x")
    };
    attack("absolute link", via("/", "l/x"), &Inside("x"));
    attack("climbing link", via("../../../..", "l/x"), &Inside("x"));
    attack("link to outside", via("../outside", "l/x"), &Inside("outside/x"));
    attack(
        "absolute link to outside",
        |out| Tar::new().symlink("l", out).file("l/secret", "x"),
        &Inside("l"),
    );
    attack(
        "link over link",
        |out| Tar::new().symlink("a", out).symlink("b", "a").file("b/secret", "x"),
        &Inside("b"),
    );
    attack(
        "file through file link",
        |out| Tar::new().symlink("l", format!("{out}/secret")).file("l", "x"),
        &Inside("l"),
    );
    attack(
        "directory over link",
        |out| Tar::new().symlink("l", out).dir("l").file("l/x", "x"),
        &Inside("l/x"),
    );
    attack("dotdot through link", via("/a/b/c", "l/../x"), &Inside("x"));
    attack("loop", |_| Tar::new().symlink("l", "l").file("l/x", "x"), &Refused);
    attack("pair loop", |_| Tar::new().symlink("a", "b").symlink("b", "a").dir("a/x"), &Refused);
    attack("proc", via("/proc/self/root", "l/x"), &Inside("proc/self/root/x"));
    attack("empty target", |_| Tar::new().symlink("l", ""), &Refused);
    let long = "../".repeat(1300) + "outside";
    attack(
        "long climb",
        |_| Tar::new().pax(&[("linkpath", long.as_bytes())]).symlink("l", "").file("l/x", "x"),
        &Inside("outside/x"),
    );
    attack(
        "device through link",
        |out: &str| Tar::new().symlink("l", out).header(&device("l/null", b'3', 1, 3)),
        &Applied,
    );
}

#[test]
fn root_hard_links_stay_inside() {
    let link = |to: &'static str| move |_: &str| Tar::new().hardlink("l", to);
    attack("climb", link("../outside/secret"), &Refused);
    attack("missing", link("nowhere"), &Refused);
    attack("directory", |_| Tar::new().dir("d").hardlink("l", "d"), &Refused);
    attack("root", link("/"), &Refused);
    attack("absolute", |out| Tar::new().hardlink("l", format!("{out}/secret")), &Refused);
    attack("itself", |_| Tar::new().file("l", "x").hardlink("l", "l"), &Inside("l"));
    attack("itself, missing", link("l"), &Refused);
    attack(
        "through a link",
        |out| Tar::new().symlink("d", out).hardlink("l", "d/secret"),
        &Refused,
    );
    attack(
        "to a link, then through it",
        |out| {
            Tar::new()
                .symlink("s", format!("{out}/secret"))
                .hardlink("l", "s")
                .file("l", "overwritten")
        },
        &Inside("l"),
    );
    attack(
        "to a link, then mode through it",
        |out| {
            let link =
                Header { mode: 0o777, uid: 12, link: b"s".to_vec(), ..Header::new("l", b'1') };
            Tar::new().symlink("s", format!("{out}/secret")).header(&link)
        },
        &Inside("l"),
    );
    attack(
        "replacing its target's parent",
        |_| Tar::new().dir("d").file("d/f", "x").hardlink("d", "d/f"),
        &Refused,
    );
}

#[test]
fn root_whiteouts_stay_inside() {
    attack("of dotdot", |_| Tar::new().file(".wh...", ""), &Refused);
    attack("of dot", |_| Tar::new().file(".wh..", ""), &Refused);
    attack("of nothing", |_| Tar::new().file(".wh.", ""), &Refused);
    attack("deep of dotdot", |_| Tar::new().dir("d").file("d/.wh...", ""), &Refused);
    attack("climbing", |_| Tar::new().file("../outside/.wh.secret", ""), &Refused);
    attack("through a link", |out| Tar::new().symlink("l", out).file("l/.wh.secret", ""), &Applied);
    attack(
        "opaque through a link",
        |out| Tar::new().symlink("l", out).file("l/.wh..wh..opq", ""),
        &Applied,
    );
    attack("of the link", |out| Tar::new().symlink("l", out).file(".wh.l", ""), &Inside("l"));
    attack("as a parent", |_| Tar::new().file(".wh.d/x", ""), &Refused);
    attack("opaque root", |_| Tar::new().file("a", "x").file(".wh..wh..opq", ""), &Inside("a"));
    attack("aufs", |_| Tar::new().dir(".wh..wh.plnk").file(".wh..wh.plnk/x", "x"), &Applied);
}

#[test]
fn root_limits_hold() {
    let many =
        |_: &str| (0..9).fold(Tar::new(), |t, i| t.header(&device(&format!("d{i}"), b'3', 1, 3)));
    attack("device flood", many, &Refused);
    let few = |_: &str| Tar::new().header(&device("null", b'3', 1, 3));
    attack("device", few, &Inside("null"));
    attack("spoofed whiteout", |_| Tar::new().header(&device("d", b'3', 0, 0)), &Refused);
    attack("entry flood", |_| (0..101).fold(Tar::new(), |t, i| t.dir(format!("d{i}"))), &Refused);
    let huge = |_: &str| Tar::new().header(&Header { size: 1 << 32, ..Header::new("f", b'0') });
    attack("huge claim", huge, &Refused);
    let claim = |_: &str| Tar::new().header(&Header { size: 1 << 20, ..Header::new("f", b'0') });
    attack("claim without content", claim, &Refused);
    let sparse = |size: &'static [u8]| {
        move |_: &str| {
            let map: [(&str, &[u8]); 3] =
                [("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", size), ("GNU.sparse.name", b"f")];
            Tar::new().pax(&map).file("f", "x")
        }
    };
    attack("sparse bomb", sparse(b"9000000000000000000"), &Refused);
    attack(
        "sparse total",
        |out| {
            let once = sparse(b"1000000000");
            Tar([once(out).0, once(out).0, once(out).0].concat())
        },
        &Refused,
    );
    attack("sparse", sparse(b"1000000"), &Inside("f"));
    attack(
        "sparse past the end",
        {
            |_: &str| {
                Tar::new()
                    .pax(&[("GNU.sparse.map", b"9,1"), ("GNU.sparse.size", b"5")])
                    .file("f", "x")
            }
        },
        &Refused,
    );
    attack("unknown type", |_| Tar::new().header(&Header::new("x", b'Z')), &Refused);
    attack("bad uid", |_| Tar::new().pax(&[("uid", b"4294967295")]).file("f", ""), &Refused);
    attack("uid no number", |_| Tar::new().pax(&[("uid", b"x")]).file("f", ""), &Refused);
    attack("under a file", |_| Tar::new().file("f", "").file("f/x", ""), &Refused);
}

#[test]
fn root_private_overlay_attributes_are_dropped() {
    let temp = tempfile::tempdir().unwrap();
    Tar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"1"),
        ])
        .dir("d")
        .apply(temp.path())
        .unwrap();
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(temp.path().join("d"), names.as_mut_slice()).unwrap();
    assert_eq!(&names[..len], b"user.kept\0");
}

#[test]
fn root_a_link_already_there_leads_inside_too() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    std::fs::create_dir(&root).unwrap();
    symlink(temp.path(), root.join("up")).unwrap();
    Tar::new().file("up/x", "x").apply(&root).unwrap();
    assert!(!temp.path().join("x").exists());
}
