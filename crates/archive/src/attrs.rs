//! Owners, modes, times and extended attributes of what is written.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fgetxattr, fgetxattr_query, fsetxattr, fstat, futimens, getxattr,
    listxattr, lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;
use tracing::warn;

use crate::view::os;

/// Largest list of names, and largest value, the kernel returns (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Extended attributes that are overlayfs' own: never data of a layer, in either direction. A
/// layer could otherwise redirect one of its directories to any other.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// An extended attribute the host's security module puts on files by itself.
const HOST_LABEL: &[u8] = b"security.selinux";

/// The access control list of an inode, and the one a directory gives to all that is made in it.
const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// What an inode is to look like.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a> {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Extended attributes.
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Time of modification; directories get theirs at the end.
    pub(crate) mtime: Option<Timespec>,
}

impl Attributes<'_> {
    /// Sets everything on an open file or directory, but for what it has already: each change costs
    /// the file system a write to its log. The order matters: chown clears the set-id bits and
    /// capabilities, any write the capabilities.
    ///
    /// # Errors
    /// The file system's, except attributes it does not know.
    pub(crate) fn set_on_fd(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let failed = |what: &str, e: Errno| Error::io(format!("set {what} of {path:?}"), e.into());
        let made = fstat(fd).map_err(|e| failed("the attributes", e))?;
        let owned = (made.st_uid, made.st_gid) == (self.uid, self.gid);
        if !owned {
            fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
                .map_err(|e| failed("the owner", e))?;
        }
        for (name, value) in self.xattrs {
            if is_overlay_private(name) {
                continue;
            }
            let done = fsetxattr(fd, os(name), value, XattrFlags::empty());
            tolerate(done, FileType::RegularFile, name, path)?;
        }
        // A new owner and an access control list change the mode as well.
        if !owned || !self.xattrs.is_empty() || made.st_mode & 0o7777 != self.mode {
            fchmod(fd, Mode::from_raw_mode(self.mode)).map_err(|e| failed("the mode", e))?;
        }
        if let Some(time) = self.mtime {
            set_mtime(fd, time).map_err(|e| failed("the time", e))?;
        }
        Ok(())
    }

    /// Sets everything on `name` in a directory, for what cannot be opened without effect:
    /// symlinks, devices, pipes.
    ///
    /// # Errors
    /// As [`Self::set_on_fd`].
    pub(crate) fn set_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        file_type: FileType,
        path: &Path,
    ) -> Result<()> {
        let failed = |what: &str, e: Errno| Error::io(format!("set {what} of {path:?}"), e.into());
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        chownat(dir, os(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("the owner", e))?;
        for (key, value) in self.xattrs {
            if is_overlay_private(key) {
                continue;
            }
            let done = lsetxattr(proc_path(dir, name), os(key), value, XattrFlags::empty());
            tolerate(done, file_type, key, path)?;
        }
        if file_type != FileType::Symlink {
            // The name is no symlink: it was made a moment ago and nobody else writes here.
            chmodat(dir, os(name), Mode::from_raw_mode(self.mode), AtFlags::empty())
                .map_err(|e| failed("the mode", e))?;
        }
        if let Some(time) = self.mtime {
            utimensat(dir, os(name), &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| failed("the time", e))?;
        }
        Ok(())
    }
}

/// Whether an open directory gives what is made in it access control lists.
pub(crate) fn gives_acls(dir: BorrowedFd<'_>) -> bool {
    fgetxattr_query(dir, DEFAULT_ACL).is_ok_and(|len| len > 0)
}

/// Whether these extended attributes make a directory one that gives access control lists.
pub(crate) fn say_default_acl(xattrs: &[(Vec<u8>, Vec<u8>)]) -> bool {
    xattrs.iter().any(|(name, _)| name == DEFAULT_ACL.as_bytes())
}

/// Takes from an inode just made the access control lists that its directory gave it. Its mode is
/// for the caller to set; the kernel worked it out from the list.
///
/// # Errors
/// The file system's.
pub(crate) fn drop_given_acls(dir: BorrowedFd<'_>, name: &[u8], path: &Path) -> Result<()> {
    let inode = proc_path(dir, name);
    for list in [ACCESS_ACL, DEFAULT_ACL] {
        match lremovexattr(&inode, list) {
            // No such list, as on all but directories for the second; or none known here.
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS) => {}
            Err(err) => return Err(Error::io(format!("remove {list} of {path:?}"), err.into())),
        }
    }
    Ok(())
}

/// Whether an extended attribute is overlayfs' own.
pub(crate) fn is_overlay_private(name: &[u8]) -> bool {
    OVERLAY_PREFIXES.iter().any(|p| name.starts_with(p))
}

/// The time of modification in a stat result.
pub(crate) fn mtime(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Sets the time of modification and leaves the time of access.
///
/// # Errors
/// The file system's.
pub(crate) fn set_mtime(fd: BorrowedFd<'_>, time: Timespec) -> rustix::io::Result<()> {
    futimens(fd, &timestamps(time))
}

/// Removes the extended attributes of a directory that a layer names anew, but for those the
/// layer sets again, overlayfs' own and the host's label.
///
/// # Errors
/// The file system's.
pub(crate) fn drop_stale_xattrs(
    fd: BorrowedFd<'_>,
    keep: &[(Vec<u8>, Vec<u8>)],
    path: &Path,
) -> Result<()> {
    for (name, _) in read_xattrs(fd, path)? {
        if name == HOST_LABEL || keep.iter().any(|(n, _)| *n == name) {
            continue;
        }
        tolerate(rustix::fs::fremovexattr(fd, os(&name)), FileType::Directory, &name, path)?;
    }
    Ok(())
}

/// The extended attributes of an inode by any kind of handle, overlayfs' own left out, by name.
///
/// # Errors
/// The file system's.
pub(crate) fn read_xattrs(fd: BorrowedFd<'_>, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let failed = |e: Errno| Error::io(format!("read extended attributes of {path:?}"), e.into());
    let inode = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let mut names = vec![0; XATTR_BYTES_MAX];
    let len = match listxattr(&inode, names.as_mut_slice()) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(err) => return Err(failed(err)),
    };
    names.truncate(len);
    let mut found = Vec::new();
    let mut value = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty() && !is_overlay_private(n)) {
        value.resize(XATTR_BYTES_MAX, 0);
        match getxattr(&inode, os(name), value.as_mut_slice()) {
            Ok(len) => found.push((name.to_vec(), value[..len].to_vec())),
            // Listed, but gone or not for us to read.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(err) => return Err(failed(err)),
        }
    }
    found.sort();
    Ok(found)
}

/// The value of one extended attribute of an open file or directory, if it has it.
pub(crate) fn xattr(fd: BorrowedFd<'_>, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = fgetxattr(fd, name, value.as_mut_slice()).ok()?;
    value.truncate(len);
    Some(value)
}

/// Whether an open directory is marked opaque under this attribute's name.
pub(crate) fn is_opaque(fd: BorrowedFd<'_>, attribute: &str) -> bool {
    xattr(fd, attribute).is_some_and(|v| v == b"y")
}

/// A path by which the kernel reaches `name` in an open directory, and nothing else.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(os(name))
}

fn timestamps(mtime: Timespec) -> Timestamps {
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access: keep, last_modification: mtime }
}

/// An extended attribute that this file system, or this kind of inode, cannot hold is a warning:
/// the same layer must unpack on every host. Capabilities are not: a program without them breaks.
fn tolerate(
    done: rustix::io::Result<()>,
    file_type: FileType,
    name: &[u8],
    path: &Path,
) -> Result<()> {
    let Err(err) = done else { return Ok(()) };
    let user = name.starts_with(b"user.");
    let plain = matches!(file_type, FileType::RegularFile | FileType::Directory);
    let tolerated = match err {
        Errno::OPNOTSUPP | Errno::NODATA => true,
        Errno::PERM | Errno::ACCESS => (user && !plain) || name.starts_with(b"trusted."),
        _ => false,
    };
    let shown = String::from_utf8_lossy(name);
    if tolerated {
        warn!(path = %path.display(), xattr = %shown, error = %err, "extended attribute left out");
        return Ok(());
    }
    let failed = format!("set extended attribute {shown:?} of {path:?}");
    // An unknown namespace or a malformed value is the layer's fault.
    if matches!(err, Errno::INVAL | Errno::RANGE | Errno::TOOBIG) {
        return Err(Error::invalid_argument(format!("{failed}: {err}")));
    }
    Err(Error::io(failed, err.into()))
}

/// The handle's attributes as they stand in a stat result.
pub(crate) fn of_stat<'a>(stat: &Stat, xattrs: &'a [(Vec<u8>, Vec<u8>)]) -> Attributes<'a> {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        xattrs,
        mtime: Some(mtime(stat)),
    }
}
