//! The summary of a tree: cheap to make while it is measured for its commit, and to make again.
//!
//! Each name gives one SHA-256 over everything a layer says about it but its content; the summary
//! is their sum, so the order in which a directory lists its entries plays no part. What the
//! kernel or the host may change in a layer at rest is left out: times of access and of change,
//! sizes of directories, counts of links, the host's own labels, and overlayfs' bookkeeping other
//! than the mark of an opaque directory.

use std::io;
use std::path::Path;

use gantry_sys::tree::{self, Measure, Named};
use gantry_sys::xattr;
use rustix::fs::FileType;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

/// Bytes of a summary.
pub(super) const SUM_BYTES: usize = 32;

/// Most bytes of names of extended attributes of one inode (the kernel's own limit).
const XATTR_NAMES_BYTES_MAX: usize = 64 << 10;

/// Attributes that say nothing about the layer.
const HOST_XATTRS: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// Overlayfs' own attributes.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What a tree holds, in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Names, the root's included.
    pub(super) names: u64,
    /// Bytes of regular files, by name.
    pub(super) bytes: u64,
    /// Sum of the digests of all names.
    pub(super) sum: [u8; SUM_BYTES],
}

/// Measures a tree and sums it up, in one walk.
pub(super) fn of_tree(root: &Path) -> io::Result<(Measure, Summary)> {
    let mut summary = Summary::default();
    let mut names = vec![0; XATTR_NAMES_BYTES_MAX];
    let measure = tree::measure_each(root, &mut |named| summary.add(&named, &mut names))?;
    Ok((measure, summary))
}

impl Summary {
    fn add(&mut self, named: &Named<'_>, xattr_names: &mut [u8]) -> io::Result<()> {
        let stat = named.stat;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut digester = Sha256::new();
        digester.update((named.path.len() as u64).to_le_bytes());
        digester.update(named.path);
        let size = if kind.is_dir() { 0 } else { stat.st_size };
        // The root's time is that of unpacking, in layers as in copies of them.
        let (seconds, nanos) = match named.path {
            b"" => (0, 0),
            _ => (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        };
        for number in [
            i64::from(stat.st_mode),
            i64::from(stat.st_uid),
            i64::from(stat.st_gid),
            i64::try_from(stat.st_rdev).unwrap_or(0),
            size,
            seconds,
            nanos,
        ] {
            digester.update(number.to_le_bytes());
        }
        for name in xattrs(named, xattr_names)? {
            digester.update(name);
            digester.update(b"\0");
        }
        self.names += 1;
        if kind.is_file() {
            self.bytes += u64::try_from(size).unwrap_or(0);
        }
        self.sum = plus(self.sum, digester.finalize().into());
        Ok(())
    }

    /// How another summary differs, in words.
    pub(super) fn difference(&self, found: &Self) -> Option<String> {
        if self == found {
            return None;
        }
        if self.names != found.names {
            return Some(format!("{} names, committed with {}", found.names, self.names));
        }
        if self.bytes != found.bytes {
            return Some(format!("{} bytes, committed with {}", found.bytes, self.bytes));
        }
        Some("names or attributes differ from what was committed".to_owned())
    }
}

/// The names of extended attributes that count, sorted.
fn xattrs<'b>(named: &Named<'_>, buf: &'b mut [u8]) -> io::Result<Vec<&'b [u8]>> {
    let len = match xattr::names_at(named.dir, named.name, buf) {
        Ok(len) => len,
        Err(e) => match Errno::from_io_error(&e) {
            Some(Errno::NOENT | Errno::OPNOTSUPP) => 0,
            _ => return Err(e),
        },
    };
    let mut names: Vec<&[u8]> = buf[..len].split(|b| *b == 0).filter(|n| counts(n)).collect();
    names.sort_unstable();
    Ok(names)
}

fn counts(name: &[u8]) -> bool {
    let overlay = OVERLAY_PREFIXES.iter().find_map(|prefix| name.strip_prefix(*prefix));
    match overlay {
        Some(rest) => rest == b"opaque",
        None => !name.is_empty() && !HOST_XATTRS.contains(&name),
    }
}

/// The sum of two numbers of 256 bits, little end first, without what overflows.
fn plus(mut a: [u8; SUM_BYTES], b: [u8; SUM_BYTES]) -> [u8; SUM_BYTES] {
    let mut carry = 0_u16;
    for (a, b) in a.iter_mut().zip(b) {
        carry += u16::from(*a) + u16::from(b);
        *a = (carry & 0xff) as u8;
        carry >>= 8;
    }
    a
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn sum(root: &Path) -> Summary {
        of_tree(root).unwrap().1
    }

    #[test]
    fn sums_do_not_depend_on_order() {
        let max = [0xff; SUM_BYTES];
        let mut one = [0; SUM_BYTES];
        one[0] = 1;
        assert_eq!(plus(max, one), [0; SUM_BYTES]);
        assert_eq!(plus(one, plus(max, one)), plus(plus(one, max), one));
    }

    #[test]
    fn every_change_shows_and_reading_does_not() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), "content").unwrap();
        let before = sum(&root);
        assert_eq!((before.names, before.bytes), (3, 7));
        assert_eq!(fs::read(root.join("dir/file")).unwrap(), b"content");
        assert_eq!(sum(&root), before);
        let set = |mode| fs::set_permissions(root.join("dir/file"), mode).unwrap();
        let mode = fs::metadata(root.join("dir/file")).unwrap().permissions();
        set(fs::Permissions::from_mode(0o4755));
        let why = before.difference(&sum(&root)).unwrap();
        assert!(why.contains("attributes"), "{why}");
        set(mode);
        assert_eq!(before.difference(&sum(&root)), None);
        let file = fs::File::options().write(true).open(root.join("dir/file")).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.set_len(0).unwrap();
        file.set_modified(time).unwrap();
        assert_eq!(before.difference(&sum(&root)).unwrap(), "0 bytes, committed with 7");
        fs::remove_file(root.join("dir/file")).unwrap();
        assert_eq!(before.difference(&sum(&root)).unwrap(), "2 names, committed with 3");
    }

    #[test]
    fn names_of_attributes_count_but_the_hosts() {
        assert!(counts(b"security.capability") && counts(b"trusted.overlay.opaque"));
        assert!(!counts(b"security.selinux") && !counts(b"trusted.overlay.origin"));
    }
}
