//! What of a subvolume is not its parent's.
//!
//! A file keeps its inode number and its time of change when its subvolume is snapshotted, and
//! gets another time with whatever is done to it. So what has both of its parent's, under the same
//! name, is the parent's. Extents that a changed file still shares with its parent are counted.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;

use gantry_sys::tree::{Measure, measure_each};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};
use rustix::io::Errno;

/// Inodes, and bytes of blocks, of what is in `tree` and not in `parent`; the root counts always.
pub(super) fn measure(tree: &Path, parent: &Path) -> io::Result<Measure> {
    let parent = File::open(parent)?;
    let mut own = Measure::default();
    let mut linked = HashSet::new();
    measure_each(tree, &mut |named| {
        let stat = named.stat;
        let is_root = named.path.is_empty();
        let directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        let first = directory || stat.st_nlink < 2 || linked.insert(stat.st_ino);
        if first && (is_root || !is_parents(&parent, named.path, stat)?) {
            own.inodes += 1;
            // Blocks are of 512 bytes, whatever the filesystem.
            own.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
        Ok(())
    })?;
    Ok(own)
}

fn is_parents(parent: &File, path: &[u8], stat: &Stat) -> io::Result<bool> {
    let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b"."[..], path),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let found = openat2(parent, dir, flags, Mode::empty(), resolve)
        .and_then(|dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
    match found {
        Ok(old) => Ok(old.st_ino == stat.st_ino
            && (old.st_ctime, old.st_ctime_nsec) == (stat.st_ctime, stat.st_ctime_nsec)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
