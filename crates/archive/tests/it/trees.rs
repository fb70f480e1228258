//! What a layer makes.

use std::os::unix::fs::MetadataExt;

use gantry_archive::{Compression, Compressor};
use gantry_core::Digest;
use std::io::Write;

use crate::support::{DEFAULT_ACL, Header, Tar, acl, paths, snapshot, xattrs};

#[test]
fn root_every_kind_with_its_attributes() {
    let temp = tempfile::tempdir().unwrap();
    let file = Header { mode: 0o6755, uid: 12, gid: 34, size: 5, ..Header::new("d/f", b'0') };
    let records: [(&str, &[u8]); 3] = [
        ("mtime", b"1600000000.123456789"),
        ("SCHILY.xattr.user.a", b"1\n2=3"),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    let applied = Tar::new()
        .header(&Header { mode: 0o1777, mtime: 5, ..Header::new("d/", b'5') })
        .pax(&records)
        .header(&file)
        .data(b"hello")
        .symlink("d/s", "f")
        .hardlink("d/h", "d/f")
        .header(&Header { mode: 0o600, device: (1, 3), ..Header::new("null", b'3') })
        .header(&Header { mode: 0o660, device: (8, 1), ..Header::new("sda1", b'4') })
        .header(&Header::new("pipe", b'6'))
        .apply(temp.path())
        .unwrap();
    assert_eq!(applied.entries, 7);
    let tree = snapshot(temp.path());
    let f = &tree["d/f"];
    assert_eq!((f.mode, f.owner, f.mtime), (0o6755, (12, 34), (1_600_000_000, 123_456_789)));
    assert_eq!(f.data, b"hello");
    assert_eq!(f.xattrs.len(), 2);
    assert_eq!(tree["d/h"].same_as, "d/f");
    assert_eq!(tree["d/s"].data, b"f");
    // The time of the directory holds though files came into it later.
    assert_eq!((tree["d"].mode, tree["d"].mtime), (0o1777, (5, 0)));
    assert_eq!(tree["null"].data, rustix::fs::makedev(1, 3).to_string().as_bytes());
    assert_eq!((tree["sda1"].kind.as_str(), tree["sda1"].mode), ("block", 0o660));
    assert_eq!(tree["pipe"].kind, "fifo");
}

#[test]
fn root_nothing_inherits_a_default_acl() {
    let temp = tempfile::tempdir().unwrap();
    let acl = acl();
    let inside = |tar: Tar, n: u32| {
        tar.file(format!("d/f{n}"), "x")
            .dir(format!("d/d{n}"))
            .file(format!("d/d{n}/f"), "")
            .file(format!("d/m{n}/missing/f"), "")
            .symlink(format!("d/s{n}"), "f")
            .hardlink(format!("d/l{n}"), format!("d/f{n}"))
            .header(&Header { device: (1, 3), ..Header::new(format!("d/null{n}"), b'3') })
            .header(&Header::new(format!("d/pipe{n}"), b'6'))
    };
    let check = |n: u32, names: usize| {
        let tree = snapshot(temp.path());
        let given: Vec<_> = tree.iter().filter(|(_, node)| !node.xattrs.is_empty()).collect();
        let [(name, dir)] = given[..] else { panic!("{given:#?}") };
        assert_eq!(name, "d");
        assert_eq!(dir.xattrs, [(b"system.posix_acl_default".to_vec(), acl.clone())]);
        let mode = |name: &str| tree[&format!("d/{name}")].mode;
        assert_eq!((mode(&format!("f{n}")), mode(&format!("pipe{n}"))), (0o644, 0o644));
        assert_eq!((mode(&format!("d{n}")), mode(&format!("m{n}/missing"))), (0o755, 0o755));
        assert_eq!(tree.len(), names);
    };
    let tar = Tar::new().pax(&[(DEFAULT_ACL, &acl)]).dir("d");
    inside(tar, 1).apply(temp.path()).unwrap();
    check(1, 11);
    // A layer that does not name the directory, and one that names it so again.
    inside(Tar::new(), 2).apply(temp.path()).unwrap();
    check(2, 21);
    let tar = Tar::new().dir("d").pax(&[(DEFAULT_ACL, &acl)]).dir("d");
    inside(tar, 3).apply(temp.path()).unwrap();
    check(3, 31);
}

#[test]
fn root_a_default_acl_of_the_host_stays_out() {
    let temp = tempfile::tempdir().unwrap();
    let name = "system.posix_acl_default";
    rustix::fs::setxattr(temp.path(), name, &acl(), rustix::fs::XattrFlags::empty()).unwrap();
    Tar::new().dir("d").file("d/f", "x").file("f", "x").apply(temp.path()).unwrap();
    let tree = snapshot(temp.path());
    assert!(tree.values().all(|node| node.xattrs.is_empty()), "{tree:#?}");
    assert_eq!((tree["d"].mode, tree["f"].mode), (0o755, 0o644));
}

#[test]
fn root_an_own_acl_is_kept_in_a_directory_that_gives_another() {
    let temp = tempfile::tempdir().unwrap();
    let (given, own) = (acl(), [&acl()[..16], &[4][..], &acl()[17..]].concat());
    let file = Header { mode: 0o770, ..Header::new("d/f", b'0') };
    Tar::new()
        .pax(&[(DEFAULT_ACL, &given)])
        .dir("d")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &own)])
        .header(&file)
        .apply(temp.path())
        .unwrap();
    let tree = snapshot(temp.path());
    assert_eq!(tree["d/f"].xattrs, [(b"system.posix_acl_access".to_vec(), own)]);
    assert_eq!(tree["d/f"].mode, 0o770);
}

#[test]
fn root_long_names_both_ways_of_saying_them() {
    let temp = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let gnu = format!("{}g", "g".repeat(150));
    Tar::new()
        .pax(&[("path", long.as_bytes())])
        .file("short", "x")
        .header(&Header { size: gnu.len() as u64 + 1, ..Header::new("././@LongLink", b'L') })
        .data(format!("{gnu}\0").as_bytes())
        .file("short", "y")
        .apply(temp.path())
        .unwrap();
    assert!(temp.path().join(long).exists());
    assert!(temp.path().join(gnu).exists());
}

#[test]
fn root_times_before_the_epoch_and_parents_that_are_missing() {
    let temp = tempfile::tempdir().unwrap();
    Tar::new().pax(&[("mtime", b"-1.5")]).file("a/b/c", "x").apply(temp.path()).unwrap();
    let tree = snapshot(temp.path());
    assert_eq!(tree["a/b/c"].mtime, (-2, 500_000_000));
    assert_eq!((tree["a"].mode, tree["a/b"].owner), (0o755, (0, 0)));
}

#[test]
fn root_later_entries_replace_earlier_ones_of_any_kind() {
    let temp = tempfile::tempdir().unwrap();
    Tar::new()
        .file("a", "1")
        .dir("a")
        .file("a/x", "2")
        .file("a/y/z", "2")
        .symlink("b", "a")
        .file("b", "3")
        .file("a", "4")
        .apply(temp.path())
        .unwrap();
    let tree = snapshot(temp.path());
    assert_eq!(tree["a"].data, b"4");
    assert_eq!(tree["b"].data, b"3");
    assert_eq!(tree.len(), 2);
}

#[test]
fn root_a_path_through_a_replaced_symlink_leads_elsewhere() {
    let temp = tempfile::tempdir().unwrap();
    Tar::new()
        .dir("d")
        .symlink("l", "d")
        .file("l/1", "")
        .dir("l")
        .file("l/2", "")
        .file(".wh.l", "")
        .apply(temp.path())
        .unwrap();
    assert_eq!(paths(temp.path()), ["d", "d/1", "l", "l/2"]);
}

#[test]
fn root_names_of_the_root_are_passed_by() {
    let temp = tempfile::tempdir().unwrap();
    let root = |name: &str| Header { mode: 0o700, mtime: 1, ..Header::new(name, b'5') };
    Tar::new()
        .header(&root(""))
        .header(&root("/"))
        .header(&root("./"))
        .file("f", "")
        .apply(temp.path())
        .unwrap();
    assert_eq!(paths(temp.path()), ["f"]);
}

#[test]
fn root_a_directory_named_again_gets_new_attributes_and_keeps_its_children() {
    let temp = tempfile::tempdir().unwrap();
    Tar::new()
        .pax(&[("SCHILY.xattr.user.old", b"1")])
        .dir("d")
        .file("d/f", "x")
        .apply(temp.path())
        .unwrap();
    Tar::new()
        .pax(&[("SCHILY.xattr.user.new", b"2")])
        .header(&Header { mode: 0o700, mtime: 9, ..Header::new("d", b'5') })
        .apply(temp.path())
        .unwrap();
    let tree = snapshot(temp.path());
    assert_eq!((tree["d"].mode, tree["d"].mtime.0), (0o700, 9));
    assert_eq!(xattrs(&temp.path().join("d")), [(b"user.new".to_vec(), b"2".to_vec())]);
    assert!(tree.contains_key("d/f"));
}

#[test]
fn root_directories_not_named_keep_their_time() {
    let temp = tempfile::tempdir().unwrap();
    let dir = Header { mtime: 7, ..Header::new("d", b'5') };
    Tar::new().header(&dir).file("d/f", "x").apply(temp.path()).unwrap();
    Tar::new().file("d/.wh.f", "").file("d/g", "y").apply(temp.path()).unwrap();
    let tree = snapshot(temp.path());
    assert_eq!(tree["d"].mtime, (7, 0));
    assert!(tree.contains_key("d/g") && !tree.contains_key("d/f"));
}

#[test]
fn root_hard_links_leave_the_file_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let file = Header { mode: 0o4755, uid: 7, ..Header::new("f", b'0') };
    let link = Header { mode: 0, uid: 0, mtime: 1, link: b"f".to_vec(), ..Header::new("l", b'1') };
    Tar::new().header(&file).header(&link).apply(temp.path()).unwrap();
    let meta = temp.path().join("l").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.nlink()), (0o4755, 7, 2));
}

#[test]
fn root_sparse_files_keep_their_holes() {
    let temp = tempfile::tempdir().unwrap();
    let records: [(&str, &[u8]); 2] =
        [("GNU.sparse.map", b"4096,3,1048576,2"), ("GNU.sparse.size", b"2097152")];
    Tar::new().pax(&records).file("f", "abcde").apply(temp.path()).unwrap();
    let data = std::fs::read(temp.path().join("f")).unwrap();
    assert_eq!(data.len(), 2_097_152);
    assert_eq!(&data[4096..4099], b"abc");
    assert_eq!(&data[1_048_576..1_048_578], b"de");
    assert!(temp.path().join("f").metadata().unwrap().blocks() < 1000);
}

#[test]
fn root_any_compression_gives_the_same_diff_id() {
    let tar = Tar::new().file("f", vec![7; 700_000]).finish();
    let diff_id = Digest::of(&tar);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let temp = tempfile::tempdir().unwrap();
        let mut blob = Compressor::new(Vec::new(), compression).unwrap();
        blob.write_all(&tar).unwrap();
        let blob = blob.finish().unwrap();
        let options = gantry_archive::ApplyOptions { sync: true, ..Default::default() };
        let applied = gantry_archive::apply(blob.as_slice(), temp.path(), &options).unwrap();
        assert_eq!(applied.diff_id, diff_id);
        assert_eq!(applied.size, tar.len() as u64);
        assert_eq!(applied.compression, compression);
        assert_eq!(paths(temp.path()), ["f"]);
    }
}

#[test]
fn root_gzip_of_several_members() {
    let tar = Tar::new().file("f", vec![7; 70_000]).finish();
    let mut blob = Vec::new();
    for piece in tar.chunks(10_000) {
        let mut gz = Compressor::new(Vec::new(), Compression::Gzip).unwrap();
        gz.write_all(piece).unwrap();
        blob.extend(gz.finish().unwrap());
    }
    let temp = tempfile::tempdir().unwrap();
    let applied = gantry_archive::apply(blob.as_slice(), temp.path(), &Default::default()).unwrap();
    assert_eq!(applied.diff_id, Digest::of(&tar));
}

#[test]
fn root_the_digest_covers_what_follows_the_archive() {
    let mut tar = Tar::new().file("f", "x").finish();
    tar.extend(vec![0; 300_000]);
    let temp = tempfile::tempdir().unwrap();
    let applied = gantry_archive::apply(tar.as_slice(), temp.path(), &Default::default()).unwrap();
    assert_eq!(applied.diff_id, Digest::of(&tar));
}
