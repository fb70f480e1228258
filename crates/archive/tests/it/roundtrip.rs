//! Random trees: what `diff` finds, `apply` makes.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use gantry_archive::{Changes, Compression, DiffOptions, apply, diff};
use gantry_core::Digest;
use proptest::prelude::*;

use crate::support::{DEFAULT_ACL, Header, Tar, acl, snapshot};

/// One inode of a random tree.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Dir(u32),
    File(Vec<u8>, u32),
    Symlink(String),
    Link(String),
    Fifo,
    Xattr(Vec<u8>),
    /// A directory with a default access control list.
    Giving,
}

pub(crate) fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d.e"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = (String, Op, u64)> {
    let kind = prop_oneof![
        3 => prop::sample::select(vec![0o755, 0o700, 0o1777]).prop_map(Op::Dir),
        4 => (prop::collection::vec(any::<u8>(), 0..2000), prop::sample::select(vec![0o644, 0o4755]))
            .prop_map(|(d, m)| Op::File(d, m)),
        1 => name().prop_map(Op::Symlink),
        2 => name().prop_map(Op::Link),
        1 => Just(Op::Fifo),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Op::Xattr),
        1 => Just(Op::Giving),
    ];
    (name(), kind, prop::sample::select(vec![1u64, 1_600_000_000, 1_600_000_001]))
}

/// Makes a tree, an archive an operation; what does not fit the tree so far is left out.
fn make(root: &Path, ops: &[(String, Op, u64)]) {
    for (path, op, mtime) in ops {
        let header = |kind| Header { mtime: *mtime, ..Header::new(path, kind) };
        let tar = match op {
            Op::Dir(mode) => Tar::new().header(&Header { mode: *mode, ..header(b'5') }),
            Op::File(data, mode) => Tar::new()
                .header(&Header { mode: *mode, size: data.len() as u64, ..header(b'0') })
                .data(data),
            Op::Symlink(to) => {
                Tar::new().header(&Header { link: to.as_bytes().to_vec(), ..header(b'2') })
            }
            Op::Link(to) => Tar::new().hardlink(path, to),
            Op::Fifo => Tar::new().header(&header(b'6')),
            Op::Giving => Tar::new().pax(&[(DEFAULT_ACL, &acl())]).header(&header(b'5')),
            Op::Xattr(value) => {
                Tar::new().pax(&[("SCHILY.xattr.user.x", value)]).header(&header(b'0'))
            }
        };
        let _unfit = tar.apply(root);
    }
    // Parents made on the way have the time of now; a second apart would be a difference.
    let paths: Vec<_> =
        snapshot(root).into_iter().filter(|(_, n)| n.mtime.0 > 1_700_000_000).collect();
    for (path, _) in paths {
        let when = rustix::fs::Timespec { tv_sec: 1_600_000_002, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: when, last_modification: when };
        let path = root.join(path);
        rustix::fs::utimensat(
            rustix::fs::CWD,
            std::ffi::OsStr::from_bytes(path.as_os_str().as_bytes()),
            &times,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn root_diff_then_apply_gives_the_newer_tree(
        old in prop::collection::vec(op(), 0..20),
        new in prop::collection::vec(op(), 0..20),
        removed in prop::collection::vec(name(), 0..4),
    ) {
        let temp = tempfile::tempdir().unwrap();
        let (lower, upper) = (temp.path().join("lower"), temp.path().join("upper"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::create_dir(&upper).unwrap();
        // The newer tree starts as a copy of the older and is then changed.
        make(&lower, &old);
        make(&upper, &old);
        for path in removed {
            let path = upper.join(path);
            let _gone = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
        make(&upper, &new);
        let changes = Changes::Trees { lower: Some(lower.clone()), upper: upper.clone() };
        let options = DiffOptions { precise_times: true, ..DiffOptions::default() };
        let mut layer = Vec::new();
        let diffed = diff(&changes, &mut layer, &options).unwrap();
        prop_assert_eq!(&diffed.digest, &Digest::of(&layer));
        prop_assert_eq!(diffed.size, layer.len() as u64);
        let mut again = Vec::new();
        diff(&changes, &mut again, &options).unwrap();
        prop_assert_eq!(&layer, &again, "the same trees gave two layers");

        let applied = apply(layer.as_slice(), &lower, &Default::default()).unwrap();
        prop_assert_eq!(applied.diff_id, diffed.diff_id);
        prop_assert_eq!(applied.size, diffed.diff_size);
        prop_assert_eq!(snapshot(&lower), snapshot(&upper));

        let rest = diff(&changes, std::io::sink(), &options).unwrap();
        prop_assert_eq!(rest.entries, 0, "applied, yet there is a difference");
    }
}

#[test]
fn root_every_compression_and_the_epoch() {
    let temp = tempfile::tempdir().unwrap();
    Tar::new()
        .file("old", "x")
        .header(&Header { mtime: 5, ..Header::new("d", b'5') })
        .apply(temp.path())
        .unwrap();
    let changes = Changes::Trees { lower: None, upper: temp.path().to_owned() };
    let mut ids = Vec::new();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let options =
            DiffOptions { compression, source_date_epoch: Some(1000), ..DiffOptions::default() };
        let mut layer = Vec::new();
        let diffed = diff(&changes, &mut layer, &options).unwrap();
        assert_eq!(Compression::of_magic(&layer), compression);
        let to = tempfile::tempdir().unwrap();
        apply(layer.as_slice(), to.path(), &Default::default()).unwrap();
        let tree = snapshot(to.path());
        assert_eq!((tree["old"].mtime.0, tree["d"].mtime.0), (1000, 5));
        ids.push(diffed.diff_id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
}

/// Readers that are strict refuse a header with a number left blank.
#[test]
fn root_every_header_has_its_numbers() {
    let temp = tempfile::tempdir().unwrap();
    let (lower, upper) = (temp.path().join("lower"), temp.path().join("upper"));
    std::fs::create_dir(&lower).unwrap();
    std::fs::create_dir(&upper).unwrap();
    std::fs::write(lower.join("gone"), "").unwrap();
    std::fs::write(upper.join("file"), "text").unwrap();
    std::fs::create_dir(upper.join("dir")).unwrap();
    std::os::unix::fs::symlink("file", upper.join("link")).unwrap();
    std::fs::hard_link(upper.join("file"), upper.join("other")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, upper.join("fifo"), fifo, 0o600.into(), 0).unwrap();
    let changes = Changes::Trees { lower: Some(lower), upper };
    let options = DiffOptions { compression: Compression::None, ..DiffOptions::default() };
    let mut layer = Vec::new();
    diff(&changes, &mut layer, &options).unwrap();
    let mut archive = tar::Archive::new(layer.as_slice());
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let (header, name) = (entry.header(), entry.path().unwrap().display().to_string());
        for number in [header.size(), header.uid(), header.gid(), header.mtime()] {
            number.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        header.mode().unwrap();
        names.push(name);
    }
    names.sort();
    assert_eq!(names, [".wh.gone", "dir/", "fifo", "file", "link", "other"]);
}

#[test]
fn root_an_empty_diff_is_an_empty_archive() {
    let temp = tempfile::tempdir().unwrap();
    let mut layer = Vec::new();
    let changes = Changes::Trees { lower: None, upper: temp.path().to_owned() };
    let options = DiffOptions { compression: Compression::None, ..DiffOptions::default() };
    diff(&changes, &mut layer, &options).unwrap();
    assert_eq!(layer, vec![0; 1024]);
}

#[test]
fn root_what_a_layer_cannot_say_is_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let (lower, upper) = (temp.path().join("lower"), temp.path().join("upper"));
    std::fs::create_dir(&lower).unwrap();
    std::fs::create_dir(&upper).unwrap();
    std::fs::write(lower.join("f"), "").unwrap();
    std::fs::write(upper.join("f"), "").unwrap();
    std::fs::write(upper.join(".wh.f"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    let device = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, upper.join("d"), device, 0o600.into(), 0).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(upper.join("f"), "user.a=b", b"1", flags).unwrap();
    let changes = Changes::Trees { lower: Some(lower.clone()), upper };
    let mut layer = Vec::new();
    diff(&changes, &mut layer, &DiffOptions::default()).unwrap();
    apply(layer.as_slice(), &lower, &Default::default()).unwrap();
    assert_eq!(snapshot(&lower).into_keys().collect::<Vec<_>>(), ["f"]);
}
