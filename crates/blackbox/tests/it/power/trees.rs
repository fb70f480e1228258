//! Trees of files, described so that two can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use gantry_core::Digest;
use gantry_testkit::Image;

/// What is at each path: type, mode, owner, and content or target.
pub(super) type Tree = BTreeMap<String, String>;

/// The tree at `root`. The root itself is not part of it.
pub(super) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    walk(root, root, &mut tree);
    tree
}

fn walk(root: &Path, dir: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            walk(root, &path, tree);
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            let digest = Digest::of(&fs::read(&path).unwrap());
            format!("file of {} bytes {digest}", meta.size())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {:x}", meta.rdev())
        };
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let owner = format!("{}:{}", meta.uid(), meta.gid());
        tree.insert(name, format!("{:o} {owner} {what}", meta.mode() & 0o7777));
    }
}

/// The tree of an image, unpacked with the system's tar.
pub(super) fn of_image(image: &Image) -> Tree {
    let dir = tempfile::tempdir().unwrap();
    for layer in image.manifest()["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap().parse().unwrap();
        unpack(&layer["mediaType"].to_string(), image.blob(&digest), dir.path());
    }
    read(dir.path())
}

fn unpack(media_type: &str, blob: &[u8], root: &Path) {
    let filter = match media_type.trim_end_matches('"').rsplit_once('+') {
        Some((_, "gzip")) => "gzip -dc | tar",
        Some((_, "zstd")) => "zstd -dc | tar",
        _ => "tar",
    };
    let list = format!("{filter} -t");
    for marker in filtered(&list, blob, root).lines().filter(|name| name.contains(".wh.")) {
        let (dir, name) = marker.rsplit_once('/').unwrap_or(("", marker));
        let dir = root.join(dir);
        if name == ".wh..wh..opq" {
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
        } else {
            fs::remove_file(dir.join(name.strip_prefix(".wh.").unwrap())).unwrap();
        }
    }
    filtered(&format!("{filter} -xp --numeric-owner --exclude=.wh.*"), blob, root);
}

/// Runs a shell command on `input` in `dir`.
fn filtered(command: &str, input: &[u8], dir: &Path) -> String {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}");
    writer.join().unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that two trees are the same; says where they are not.
pub(super) fn assert_same(what: &str, found: &Tree, expected: &Tree) {
    let differences: Vec<String> = expected
        .keys()
        .chain(found.keys().filter(|name| !expected.contains_key(*name)))
        .filter(|name| found.get(*name) != expected.get(*name))
        .map(|name| format!("{name}: {:?} is not {:?}", found.get(name), expected.get(name)))
        .collect();
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
