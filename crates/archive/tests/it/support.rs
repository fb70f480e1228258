//! Archives written byte by byte, and trees read back as values.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use gantry_archive::{Applied, ApplyOptions, apply};
use gantry_errdefs::Result;

/// A tar writer of our own, so that parser and writer cannot share a mistake.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

/// The fields of one header.
#[derive(Clone)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) size: u64,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
}

impl Header {
    pub(crate) fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_600_000_000,
            size: 0,
            link: Vec::new(),
            device: (0, 0),
        }
    }

    fn block(&self) -> [u8; 512] {
        let mut b = [0u8; 512];
        b[..self.name.len().min(100)].copy_from_slice(&self.name[..self.name.len().min(100)]);
        octal(&mut b[100..108], u64::from(self.mode));
        octal(&mut b[108..116], u64::from(self.uid));
        octal(&mut b[116..124], u64::from(self.gid));
        octal(&mut b[124..136], self.size);
        octal(&mut b[136..148], self.mtime);
        b[156] = self.kind;
        b[157..157 + self.link.len().min(100)]
            .copy_from_slice(&self.link[..self.link.len().min(100)]);
        b[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut b[329..337], u64::from(self.device.0));
        octal(&mut b[337..345], u64::from(self.device.1));
        b[148..156].fill(b' ');
        let sum: u64 = b.iter().map(|b| u64::from(*b)).sum();
        octal(&mut b[148..155], sum);
        b
    }
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    field[..digits].copy_from_slice(&text.as_bytes()[text.len() - digits..]);
    field[digits] = 0;
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn header(mut self, header: &Header) -> Self {
        self.0.extend_from_slice(&header.block());
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref();
        self.header(&Header { size: data.len() as u64, ..Header::new(name, b'0') }).data(data)
    }

    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.header(&Header::new(name, b'5'))
    }

    pub(crate) fn symlink(self, name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.header(&Header { link: to.as_ref().to_vec(), ..Header::new(name, b'2') })
    }

    pub(crate) fn hardlink(self, name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.header(&Header { link: to.as_ref().to_vec(), ..Header::new(name, b'1') })
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len.to_string().len() + rest != len {
                len = len.to_string().len() + rest;
            }
            data.extend_from_slice(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.header(&Header { size: data.len() as u64, ..Header::new("pax", b'x') }).data(&data)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    pub(crate) fn apply(self, root: &Path) -> Result<Applied> {
        self.apply_with(root, &ApplyOptions::default())
    }

    pub(crate) fn apply_with(self, root: &Path, options: &ApplyOptions) -> Result<Applied> {
        apply(self.finish().as_slice(), root, options)
    }
}

/// A list that lets user 12 and the group in as well, as the kernel keeps it in an attribute.
pub(crate) fn acl() -> Vec<u8> {
    let nobody = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(0x01, 7, nobody), (0x02, 6, 12), (0x04, 5, nobody), (0x10, 7, nobody), (0x20, 0, nobody)];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// The record that makes the directory whose header follows give [`acl`] to what is made in it.
pub(crate) const DEFAULT_ACL: &str = "SCHILY.xattr.system.posix_acl_default";

/// One inode as tests compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first path of the same inode.
    pub(crate) same_as: String,
}

pub(crate) type Snapshot = BTreeMap<String, Node>;

/// Everything under `root`, by path; the root itself left out.
pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut inodes = BTreeMap::new();
    walk(root, root, &mut found, &mut inodes);
    found
}

fn walk(root: &Path, dir: &Path, found: &mut Snapshot, inodes: &mut BTreeMap<u64, String>) {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in names {
        let meta = path.symlink_metadata().unwrap();
        let key = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let kind = meta.file_type();
        let (name, data) = if kind.is_dir() {
            ("dir", Vec::new())
        } else if kind.is_symlink() {
            ("symlink", std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else if kind.is_file() {
            ("file", std::fs::read(&path).unwrap())
        } else if kind.is_fifo() {
            ("fifo", Vec::new())
        } else if kind.is_char_device() {
            ("char", meta.rdev().to_string().into_bytes())
        } else {
            ("block", meta.rdev().to_string().into_bytes())
        };
        let same_as = if kind.is_dir() {
            key.clone()
        } else {
            inodes.entry(meta.ino()).or_insert_with(|| key.clone()).clone()
        };
        let node = Node {
            kind: name.to_owned(),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            data,
            xattrs: xattrs(&path),
            same_as,
        };
        found.insert(key, node);
        if kind.is_dir() {
            walk(root, &path, found, inodes);
        }
    }
}

/// Extended attributes, overlayfs' own left out.
pub(crate) fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let mut found = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0; 65536];
        let len =
            rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()).unwrap();
        found.push((name.to_vec(), value[..len].to_vec()));
    }
    found.sort();
    found
}

/// The paths of a snapshot.
pub(crate) fn paths(root: &Path) -> Vec<String> {
    snapshot(root).into_keys().collect()
}
