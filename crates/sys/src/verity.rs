//! fs-verity: a file that never changes again, and whose blocks the kernel checks as they are read.
//!
//! ext4 made with `-O verity`, f2fs and btrfs have it. Numbers and layouts are those of
//! linux/fsverity.h.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};

/// Has the kernel check the file at `path` from now on: it hashes it whole, with SHA-256. Nobody
/// may have it open for writing. It is on disk when this returns.
///
/// # Errors
/// The kernel's error; EOPNOTSUPP or ENOTTY where the filesystem cannot, EEXIST when it does
/// already, ETXTBSY while someone may write to it.
pub fn enable(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Larger blocks than those of the filesystem or of memory are refused.
    let page = rustix::param::page_size() as u64;
    let block = file.metadata()?.blksize().clamp(BLOCK_BYTES_MIN, page.max(BLOCK_BYTES_MIN));
    let args = EnableArgs {
        version: VERSION,
        hash_algorithm: SHA256,
        block_size: u32::try_from(block).map_err(io::Error::other)?,
        ..EnableArgs::default()
    };
    // SAFETY: FS_IOC_ENABLE_VERITY reads a `struct fsverity_enable_arg`, which `args` is, by layout
    // and size; it names neither salt nor signature, and lives for the call.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), IOC_ENABLE, &raw const args) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    file.sync_all()
}

/// Whether the kernel checks the file at `path`.
///
/// # Errors
/// The kernel's error.
pub fn is_enabled(path: &Path) -> io::Result<bool> {
    let found = statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::VERITY))
}

/// `struct fsverity_enable_arg`.
#[repr(C)]
#[derive(Default)]
struct EnableArgs {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved1: u32,
    signature: u64,
    reserved2: [u64; 11],
}

const VERSION: u32 = 1;
const SHA256: u32 = 1;

/// The smallest block that the kernel takes.
const BLOCK_BYTES_MIN: u64 = 1024;

/// `_IOW('f', 133, struct fsverity_enable_arg)`.
const IOC_ENABLE: libc::Ioctl = 0x4080_6685;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_that_the_number_says() {
        assert_eq!(size_of::<EnableArgs>(), 0x80);
    }

    #[test]
    fn a_file_is_not_checked_by_itself() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(!is_enabled(file.path()).expect("asked"));
        assert!(is_enabled(Path::new("/no/such/file")).is_err());
    }
}
