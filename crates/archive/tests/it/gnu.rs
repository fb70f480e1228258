//! GNU tar reads what we write and we read what it writes.

use std::path::Path;
use std::process::Command;

use gantry_archive::{Changes, Compression, DiffOptions, apply, diff};

use crate::support::{Snapshot, Tar, snapshot};

fn tar(args: &[&str], dir: &Path) {
    let done = Command::new("tar").args(args).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A tree with one of everything.
fn tree(root: &Path) {
    let long = format!("{}/{}", "long".repeat(40), "name".repeat(40));
    Tar::new()
        .dir("d")
        .pax(&[("mtime", b"1500000000.25"), ("SCHILY.xattr.user.x", b"value")])
        .file("d/f", vec![1; 100_000])
        .hardlink("d/h", "d/f")
        .symlink("d/s", "/etc/passwd")
        .pax(&[("path", long.as_bytes())])
        .file("x", "long")
        .pax(&[("linkpath", "t".repeat(300).as_bytes())])
        .symlink("longlink", "x")
        .pax(&[("mtime", b"-100")])
        .file("old", "")
        .file("d/caf\u{e9}", "")
        .header(&crate::support::Header {
            device: (1, 3),
            ..crate::support::Header::new("null", b'3')
        })
        .header(&crate::support::Header::new("pipe", b'6'))
        .apply(root)
        .unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
}

fn without_fraction(mut tree: Snapshot) -> Snapshot {
    tree.values_mut().for_each(|n| n.mtime.1 = 0);
    tree
}

#[test]
fn root_gnu_tar_reads_our_layers() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    tree(&from);
    for compression in [Compression::None, Compression::Gzip] {
        std::fs::create_dir(&to).unwrap();
        let out = std::fs::File::create(temp.path().join("layer")).unwrap();
        let options = DiffOptions { compression, precise_times: true, ..DiffOptions::default() };
        let changes = Changes::Trees { lower: None, upper: from.clone() };
        diff(&changes, out, &options).unwrap();
        tar(&["--xattrs", "--xattrs-include=*", "-C", "to", "-xpf", "layer"], temp.path());
        assert_eq!(snapshot(&to), snapshot(&from));
        std::fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn root_we_read_gnu_tars_archives() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    tree(&from);
    let forms: [(&[&str], bool); 6] = [
        (&["--format=gnu"], false),
        (&["--format=gnu", "--sparse"], false),
        (&["--format=pax", "--xattrs", "--xattrs-include=*"], true),
        (&["--format=pax", "--sparse", "--sparse-version=0.0", "--xattrs"], true),
        (&["--format=pax", "--sparse", "--sparse-version=0.1", "--xattrs"], true),
        (&["--format=pax", "--sparse", "--sparse-version=1.0", "--xattrs", "-z"], true),
    ];
    for (form, exact) in forms {
        let mut args = vec!["--numeric-owner", "-cf", "layer", "-C", "from"];
        args.extend(form);
        args.push(".");
        tar(&args, temp.path());
        std::fs::create_dir(&to).unwrap();
        let layer = std::fs::File::open(temp.path().join("layer")).unwrap();
        apply(layer, &to, &Default::default()).unwrap();
        let (mut got, mut want) = (snapshot(&to), snapshot(&from));
        if !exact {
            (got, want) = (without_fraction(got), without_fraction(want));
            want.values_mut().for_each(|n| n.xattrs.clear());
        }
        for (path, node) in &want {
            assert_eq!(got.get(path), Some(node), "{form:?} {path}");
        }
        assert_eq!(got.len(), want.len(), "{form:?}");
        std::fs::remove_dir_all(&to).unwrap();
    }
}
