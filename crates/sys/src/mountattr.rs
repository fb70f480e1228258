//! `mount_setattr(2)`: properties of a mount or a whole mount tree, id mapping among them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

/// What to change. Bits are `MOUNT_ATTR_*` (linux/mount.h).
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear; for another access-time mode `MOUNT_ATTR__ATIME` is cleared.
    pub clear: u64,
    /// Propagation type to set (`MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`), 0 for none.
    pub propagation: u64,
    /// User namespace whose mapping the mount takes; sets `MOUNT_ATTR_IDMAP`.
    pub user_namespace: Option<BorrowedFd<'a>>,
}

/// Changes the mount that `dir` refers to (`AT_EMPTY_PATH`), and with `recursive` all below it.
///
/// # Errors
/// The kernel's error; ENOSYS before Linux 5.12.
pub fn set_attributes(dir: impl AsFd, attrs: &Attributes<'_>, recursive: bool) -> io::Result<()> {
    setattr(dir.as_fd().as_raw_fd(), c"", libc::AT_EMPTY_PATH, attrs, recursive)
}

/// Changes the mount at `path`, and with `recursive` all below it.
///
/// # Errors
/// The kernel's error; EINVAL when `path` is no mount point, ENOSYS before Linux 5.12.
pub fn set_attributes_at(path: &Path, attrs: &Attributes<'_>, recursive: bool) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    setattr(libc::AT_FDCWD, &path, 0, attrs, recursive)
}

/// A detached copy of the mount at `path` (a bind mount not attached anywhere) whose owners are
/// mapped by `user_namespace`. Attach it with `move_mount`.
///
/// # Errors
/// The kernel's error; EINVAL when the filesystem cannot be id-mapped.
pub fn idmapped_tree(
    path: &Path,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(rustix::fs::CWD, path, flags)?;
    let attrs = Attributes { user_namespace: Some(user_namespace), ..Attributes::default() };
    set_attributes(&tree, &attrs, recursive)?;
    Ok(tree)
}

fn setattr(
    dir: libc::c_int,
    path: &std::ffi::CStr,
    flags: libc::c_int,
    attrs: &Attributes<'_>,
    recursive: bool,
) -> io::Result<()> {
    let flags = if recursive { flags | libc::AT_RECURSIVE } else { flags };
    let userns = attrs.user_namespace.map(|fd| fd.as_raw_fd() as u64);
    let raw = RawAttr {
        attr_set: attrs.set | if userns.is_some() { ATTR_IDMAP } else { 0 },
        attr_clr: attrs.clear,
        propagation: attrs.propagation,
        userns_fd: userns.unwrap_or(0),
    };
    // SAFETY: `path` is a NUL-terminated string and `raw` a `struct mount_attr` of the size passed;
    // both live for the call, and the kernel only reads them.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&raw),
            std::mem::size_of::<RawAttr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct mount_attr` of linux/mount.h, version 0 (32 bytes).
#[repr(C)]
struct RawAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `MOUNT_ATTR_IDMAP` of linux/mount.h.
const ATTR_IDMAP: u64 = 0x0010_0000;
