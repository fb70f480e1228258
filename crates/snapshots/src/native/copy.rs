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
    chmodat, chownat, fstat, ioctl_ficlone, lgetxattr, lgetxattr_query, linkat, llistxattr,
    llistxattr_query, lsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

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
    match ioctl_ficlone(&copy, &source) {
        Ok(()) => Ok(()),
        // Copies in the kernel, or by reading and writing.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            io::copy(&mut File::from(source), &mut File::from(copy)).map(drop)
        }
        Err(e) => Err(e.into()),
    }
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
