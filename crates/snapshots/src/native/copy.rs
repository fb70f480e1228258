//! Copying a tree with everything about it: owners, modes, times, extended attributes, hard links,
//! device nodes, sockets and pipes. File data is shared by reflink where the filesystem can.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use gantry_sys::tree::entries;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fstat, lgetxattr, lgetxattr_query, linkat, llistxattr, llistxattr_query,
    lsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::data;

/// Deepest directory that is copied. Two descriptors are open for each level; images come nowhere
/// near.
const DEPTH_MAX: usize = 256;

/// Copies what is in the directory `from`, and its own properties, to the existing empty
/// directory `to`.
///
/// # Errors
/// The I/O error; what was copied so far stays.
pub(super) fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut links = HashMap::new();
    let mut stack = vec![Level::open(CWD, from, CWD, to)?];
    while let Some(level) = stack.last_mut() {
        if !level.read {
            level.read = true;
            level.copy_entries(to, &mut links)?;
        }
        let Some(name) = level.subdirs.pop() else {
            // Last, because making entries changes the times.
            let done = stack.pop();
            done.map_or(Ok(()), |level| level.finish())?;
            continue;
        };
        if stack.len() >= DEPTH_MAX {
            return Err(io::Error::other(format!("more than {DEPTH_MAX} directories deep")));
        }
        let level = &stack[stack.len() - 1];
        let mut child = Level::open(&level.from, &name, &level.to, &name)?;
        child.path = level.path.join(OsStr::from_bytes(name.to_bytes()));
        stack.push(child);
    }
    Ok(())
}

struct Level {
    from: OwnedFd,
    to: OwnedFd,
    stat: Stat,
    /// Path of the copy below its root.
    path: PathBuf,
    read: bool,
    subdirs: Vec<CString>,
}

/// Copied files with more names to come, by device and inode; paths below the copy's root.
type Links = HashMap<(u64, u64), PathBuf>;

impl Level {
    fn open(
        from_dir: impl AsFd,
        from: impl rustix::path::Arg,
        to_dir: impl AsFd,
        to: impl rustix::path::Arg,
    ) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = openat(from_dir, from, flags, Mode::empty())?;
        let to = openat(to_dir, to, flags, Mode::empty())?;
        let stat = fstat(&from)?;
        Ok(Self { from, to, stat, path: PathBuf::new(), read: false, subdirs: Vec::new() })
    }

    fn copy_entries(&mut self, root: &Path, links: &mut Links) -> io::Result<()> {
        let (from, to, path) = (self.from.as_fd(), self.to.as_fd(), &self.path);
        let subdirs = &mut self.subdirs;
        entries(from, &mut |name, kind| {
            if kind.is_dir() {
                mkdirat(to, name, Mode::RWXU)?;
                subdirs.push(name.to_owned());
                return Ok(ControlFlow::Continue(()));
            }
            let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if stat.st_nlink > 1 {
                let id = (stat.st_dev, stat.st_ino);
                if let Some(first) = links.get(&id) {
                    linkat(CWD, root.join(first), to, name, AtFlags::empty())?;
                    return Ok(ControlFlow::Continue(()));
                }
                links.insert(id, path.join(OsStr::from_bytes(name.to_bytes())));
            }
            copy_file(from, to, name, kind, &stat)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn finish(self) -> io::Result<()> {
        copy_properties(&fd_path(&self.from), &fd_path(&self.to), &self.stat, true)
    }
}

fn copy_file(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    kind: FileType,
    stat: &Stat,
) -> io::Result<()> {
    match kind {
        FileType::RegularFile => copy_data(from, to, name)?,
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        _ => mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
    }
    let name = OsStr::from_bytes(name.to_bytes());
    let (from, to) = (fd_path(from).join(name), fd_path(to).join(name));
    copy_properties(&from, &to, stat, kind != FileType::Symlink)
}

fn copy_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
    let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let copy = openat(to, name, create, Mode::RUSR | Mode::WUSR)?;
    data::copy(&File::from(source), &File::from(copy))
}

/// Owner, mode (not of a symbolic link), extended attributes and times, in the order in which the
/// next does not undo the one before.
fn copy_properties(from: &Path, to: &Path, stat: &Stat, has_mode: bool) -> io::Result<()> {
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(CWD, to, Some(owner.0), Some(owner.1), no_follow(to))?;
    if has_mode {
        chmodat(CWD, to, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    copy_xattrs(from, to)?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    };
    Ok(utimensat(CWD, to, &times, no_follow(to))?)
}

/// `/proc/self/fd/N` itself is a link to be followed; a name below it is not.
fn no_follow(path: &Path) -> AtFlags {
    if path.parent() == Some(Path::new(FD_DIR)) {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    }
}

const FD_DIR: &str = "/proc/self/fd";

/// A path for calls that have no form with a descriptor.
fn fd_path(fd: impl AsFd) -> PathBuf {
    Path::new(FD_DIR).join(fd.as_fd().as_raw_fd().to_string())
}

fn copy_xattrs(from: &Path, to: &Path) -> io::Result<()> {
    // The directory itself is reached through its descriptor's link, which must be followed.
    let (from, to) = (with_dot(from), with_dot(to));
    let len = match llistxattr_query(&from) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(len) => len,
        Err(e) => return Err(e.into()),
    };
    let mut names = vec![0_u8; len];
    let len = llistxattr(&from, &mut names)?;
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0_u8; lgetxattr_query(&from, name)?];
        let len = if value.is_empty() { 0 } else { lgetxattr(&from, name, &mut value)? };
        match lsetxattr(&to, name, &value[..len], XattrFlags::empty()) {
            Ok(()) => {}
            // The security module's own labels are its own matter.
            Err(Errno::OPNOTSUPP | Errno::PERM) if name.starts_with(b"security.") => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn with_dot(path: &Path) -> PathBuf {
    if no_follow(path).is_empty() { path.join(".") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown};
    use std::os::unix::net::UnixListener;
    use std::time::{Duration, SystemTime};

    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn root_everything_is_copied() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        fs::create_dir_all(from.join("dir/sub")).unwrap();
        fs::create_dir(&to).unwrap();
        let mode = Mode::from_raw_mode(0o640);
        for (name, kind, dev) in
            [("null", FileType::CharacterDevice, makedev(1, 3)), ("fifo", FileType::Fifo, 0)]
        {
            mknodat(CWD, from.join(name), kind, mode, dev).unwrap();
        }
        drop(UnixListener::bind(from.join("socket")).unwrap());
        std::os::unix::fs::symlink("nowhere", from.join("link")).unwrap();
        lchown(from.join("link"), Some(5), Some(6)).unwrap();
        fs::write(from.join("dir/sub/file"), vec![3; 100_000]).unwrap();
        fs::hard_link(from.join("dir/sub/file"), from.join("dir/other")).unwrap();
        lsetxattr(from.join("dir"), "trusted.x", b"1", XattrFlags::empty()).unwrap();
        lsetxattr(from.join("link"), "trusted.y", b"", XattrFlags::empty()).unwrap();
        fs::set_permissions(from.join("dir"), fs::Permissions::from_mode(0o1571)).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::new(12345, 67);
        fs::File::open(from.join("dir")).unwrap().set_modified(then).unwrap();
        fs::File::open(&from).unwrap().set_modified(then).unwrap();

        tree(&from, &to).unwrap();
        for name in ["", "null", "fifo", "socket", "link", "dir", "dir/sub", "dir/sub/file"] {
            let of = |root: &Path| {
                let m = fs::symlink_metadata(root.join(name)).unwrap();
                (m.mode(), m.uid(), m.gid(), m.rdev(), m.mtime(), m.mtime_nsec(), m.nlink())
            };
            assert_eq!(of(&from), of(&to), "{name:?}");
        }
        assert!(fs::symlink_metadata(to.join("socket")).unwrap().file_type().is_socket());
        assert_eq!(fs::read(to.join("dir/other")).unwrap(), vec![3; 100_000]);
        let mut value = [0; 8];
        assert_eq!(lgetxattr(to.join("dir"), "trusted.x", &mut value).unwrap(), 1);
        assert_eq!(lgetxattr(to.join("link"), "trusted.y", &mut value).unwrap(), 0);
    }

    #[test]
    fn depth_has_a_limit() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        fs::create_dir(&to).unwrap();
        fs::create_dir_all(from.join("d/".repeat(DEPTH_MAX - 1))).unwrap();
        tree(&from, &to).unwrap();
        fs::create_dir_all(from.join("d/".repeat(DEPTH_MAX))).unwrap();
        fs::remove_dir_all(&to).unwrap();
        fs::create_dir(&to).unwrap();
        assert!(tree(&from, &to).is_err());
    }
}
