//! Subvolumes of btrfs: trees that are copied in no time and removed in one step.
//!
//! Numbers and layouts are those of linux/btrfs.h.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Inode number of the root directory of every subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
const ROOT_INODE: u64 = 256;

/// `BTRFS_SUPER_MAGIC` of linux/magic.h.
const MAGIC: i64 = 0x9123_683E;

/// Whether `path` is on a btrfs.
///
/// # Errors
/// The I/O error.
pub fn is_on(path: &Path) -> io::Result<bool> {
    // The width of the field differs between architectures.
    #[allow(clippy::unnecessary_cast, reason = "the field is no i64 everywhere")]
    let kind = rustix::fs::statfs(path)?.f_type as i64;
    Ok(kind == MAGIC)
}

/// Makes an empty subvolume at `path`.
///
/// # Errors
/// The kernel's error; ENOTTY on another filesystem.
pub fn create(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    change(parent.as_raw_fd(), IOC_SUBVOL_CREATE_V2, &VolArgsV2::new(name, 0)?)
}

/// Makes `path` a writable subvolume with what the subvolume `source` holds now.
///
/// # Errors
/// The kernel's error; EINVAL when `source` is no subvolume, EXDEV for another filesystem's.
pub fn snapshot(source: &Path, path: &Path) -> io::Result<()> {
    let source = File::open(source)?;
    let (parent, name) = split(path)?;
    let source = i64::from(source.as_raw_fd());
    change(parent.as_raw_fd(), IOC_SNAP_CREATE_V2, &VolArgsV2::new(name, source)?)
}

/// Removes the subvolume at `path` with all that is in it. The space is freed by the kernel in the
/// background.
///
/// # Errors
/// The kernel's error; ENOTEMPTY when another subvolume is in it.
pub fn remove(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    change(parent.as_raw_fd(), IOC_SNAP_DESTROY, &VolArgs::new(name)?)
}

/// Whether there is a subvolume at `path`, on a btrfs.
///
/// # Errors
/// The I/O error; NotFound.
pub fn is_subvolume(path: &Path) -> io::Result<bool> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok(meta.is_dir() && meta.ino() == ROOT_INODE && is_on(path)?)
}

/// The number of the subvolume that `path` is in, as the mount option `subvolid` takes it.
///
/// # Errors
/// The kernel's error; ENOTTY on another filesystem.
pub fn subvolume_id(path: &Path) -> io::Result<u64> {
    let dir = File::open(path)?;
    let mut args = LookupArgs { tree: 0, object: ROOT_INODE, name: [0; LOOKUP_NAME_LEN] };
    // SAFETY: BTRFS_IOC_INO_LOOKUP reads and writes a `struct btrfs_ioctl_ino_lookup_args`, which
    // `args` is, by layout and size; it lives for the call.
    let rc = unsafe { libc::ioctl(dir.as_raw_fd(), IOC_INO_LOOKUP, &raw mut args) };
    if rc == 0 { Ok(args.tree) } else { Err(io::Error::last_os_error()) }
}

/// Calls an ioctl that reads `args`, and only reads.
fn change<T>(dir: RawFd, request: libc::Ioctl, args: &T) -> io::Result<()> {
    // SAFETY: the callers pair each request with the structure it reads, checked by size below;
    // it lives for the call.
    let rc = unsafe { libc::ioctl(dir, request, std::ptr::from_ref(args)) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn split(path: &Path) -> io::Result<(File, &OsStr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok((File::open(parent)?, name))
}

fn fill(buffer: &mut [u8], name: &OsStr) -> io::Result<()> {
    let name = name.as_bytes();
    // The last byte stays the NUL that ends the name.
    if name.len() >= buffer.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    buffer[..name.len()].copy_from_slice(name);
    Ok(())
}

const PATH_NAME_LEN: usize = 4087 + 1;
const SUBVOL_NAME_LEN: usize = 4039 + 1;
const LOOKUP_NAME_LEN: usize = 4080;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; PATH_NAME_LEN],
}

impl VolArgs {
    fn new(name: &OsStr) -> io::Result<Self> {
        let mut args = Self { fd: 0, name: [0; PATH_NAME_LEN] };
        fill(&mut args.name, name)?;
        Ok(args)
    }
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; SUBVOL_NAME_LEN],
}

impl VolArgsV2 {
    fn new(name: &OsStr, fd: i64) -> io::Result<Self> {
        let mut args =
            Self { fd, transid: 0, flags: 0, unused: [0; 4], name: [0; SUBVOL_NAME_LEN] };
        fill(&mut args.name, name)?;
        Ok(args)
    }
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct LookupArgs {
    tree: u64,
    object: u64,
    name: [u8; LOOKUP_NAME_LEN],
}

const IOC_MAGIC: u32 = 0x94;

/// `_IOW`/`_IOWR` of asm-generic/ioctl.h, for structures of 4096 bytes.
const fn request(direction: u32, number: u32) -> libc::Ioctl {
    const SIZE: u32 = 4096;
    ((direction << 30) | (SIZE << 16) | (IOC_MAGIC << 8) | number) as libc::Ioctl
}

const WRITE: u32 = 1;
const READ: u32 = 2;
const IOC_SNAP_DESTROY: libc::Ioctl = request(WRITE, 15);
const IOC_INO_LOOKUP: libc::Ioctl = request(READ | WRITE, 18);
const IOC_SNAP_CREATE_V2: libc::Ioctl = request(WRITE, 23);
const IOC_SUBVOL_CREATE_V2: libc::Ioctl = request(WRITE, 24);

const _: () = assert!(std::mem::size_of::<VolArgs>() == 4096);
const _: () = assert!(std::mem::size_of::<VolArgsV2>() == 4096);
const _: () = assert!(std::mem::size_of::<LookupArgs>() == 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elsewhere_there_are_no_subvolumes() {
        // The temporary directory of a developer may be on a btrfs; proc never is.
        let proc = Path::new("/proc/self");
        assert!(!is_on(proc).unwrap());
        assert!(!is_subvolume(proc).unwrap());
        assert!(subvolume_id(proc).is_err());
        assert!(create(&proc.join("x")).is_err());
        assert!(is_subvolume(Path::new("/proc/self/nothing")).is_err());
        let long = Path::new("/proc/self").join("n".repeat(5000));
        assert_eq!(remove(&long).unwrap_err().kind(), io::ErrorKind::InvalidFilename);
    }
}
