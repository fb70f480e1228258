//! Project quotas: limits on what the files of a directory tree take together.
//!
//! Every inode has a project number; one made in a directory that hands its number on gets that.
//! The filesystem adds up what each project takes and refuses more than its limit. ext4 and xfs
//! have it, when made or mounted so (`prjquota`). Numbers and layouts are those of linux/fs.h,
//! linux/quota.h and linux/dqblk_xfs.h.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Gives the directory at `path` the project `project`, and has it hand that on to what is made in
/// it from now on.
///
/// # Errors
/// The kernel's error; ENOTTY or EOPNOTSUPP where the filesystem has no projects.
pub fn set_project(path: &Path, project: u32) -> io::Result<()> {
    let dir = File::open(path)?;
    let mut attrs = attributes(&dir)?;
    attrs.project = project;
    attrs.flags |= XFLAG_PROJINHERIT;
    // SAFETY: FS_IOC_FSSETXATTR reads a `struct fsxattr`, which `attrs` is, by layout and size; it
    // lives for the call.
    let rc = unsafe { libc::ioctl(dir.as_raw_fd(), IOC_SET_ATTRIBUTES, &raw const attrs) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The project of the directory at `path`; 0 is none.
///
/// # Errors
/// As [`set_project`].
pub fn project(path: &Path) -> io::Result<u32> {
    Ok(attributes(&File::open(path)?)?.project)
}

/// Limits what `project` takes on the filesystem that `path` is on to `bytes`, rounded up to KiB;
/// 0 is no limit.
///
/// # Errors
/// The kernel's error; ESRCH where no quotas are kept, ENOSYS before Linux 5.14 and where the
/// filesystem has none.
pub fn set_limit(path: &Path, project: u32, bytes: u64) -> io::Result<()> {
    let limits = Limits {
        blocks_hard: bytes.div_ceil(BLOCK_BYTES),
        valid: VALID_BLOCK_LIMITS,
        ..Limits::default()
    };
    let file = File::open(path)?;
    // SAFETY: Q_SETQUOTA reads a `struct if_dqblk`, which `limits` is, by layout and size; it lives
    // for the call.
    let rc = unsafe {
        libc::syscall(
            SYS_QUOTACTL_FD,
            file.as_raw_fd(),
            (SET_QUOTA << COMMAND_SHIFT) | PROJECT_QUOTA,
            project,
            &raw const limits,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn attributes(file: &File) -> io::Result<Attributes> {
    let mut attrs = Attributes::default();
    // SAFETY: FS_IOC_FSGETXATTR writes a `struct fsxattr`, which `attrs` is, by layout and size; it
    // lives for the call.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), IOC_GET_ATTRIBUTES, &raw mut attrs) };
    if rc == 0 { Ok(attrs) } else { Err(io::Error::last_os_error()) }
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    unused: [u8; 8],
}

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Limits {
    blocks_hard: u64,
    blocks_soft: u64,
    space: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    blocks_time: u64,
    inodes_time: u64,
    valid: u32,
}

/// Unit of block limits (`QIF_DQBLKSIZE`).
const BLOCK_BYTES: u64 = 1024;
/// `FS_XFLAG_PROJINHERIT`.
const XFLAG_PROJINHERIT: u32 = 0x200;
/// `_IOR('X', 31, struct fsxattr)`.
const IOC_GET_ATTRIBUTES: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
/// `_IOW('X', 32, struct fsxattr)`.
const IOC_SET_ATTRIBUTES: libc::Ioctl = 0x401c_5820;
/// The same number on every architecture, as all since Linux 5.3.
const SYS_QUOTACTL_FD: libc::c_long = 443;
/// `Q_SETQUOTA`.
const SET_QUOTA: u32 = 0x80_0008;
/// `PRJQUOTA`.
const PROJECT_QUOTA: u32 = 2;
/// `SUBCMDSHIFT`.
const COMMAND_SHIFT: u32 = 8;
/// `QIF_BLIMITS`.
const VALID_BLOCK_LIMITS: u32 = 1;

const _: () = assert!(std::mem::size_of::<Attributes>() == 28);
const _: () = assert!(std::mem::size_of::<Limits>() == 72);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_without_quotas_say_so() {
        let proc = Path::new("/proc/self");
        assert!(project(proc).is_err());
        assert!(set_project(proc, 1).is_err());
        assert!(set_limit(proc, 1, 1 << 20).is_err());
        assert!(set_limit(Path::new("/no/such/path"), 1, 1).is_err());
    }
}
