//! Names of extended attributes, by directory and name.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::llistxattr;

/// `listxattrat`, of Linux 6.13; the same number on every architecture.
const SYS_LISTXATTRAT: libc::c_long = 465;

/// Set when the kernel turned out not to have the call, or a filter not to let it through.
static MISSING: AtomicBool = AtomicBool::new(false);

/// Writes the names of the extended attributes of `name` in `dir` to `names`, each with a zero byte
/// after it, and returns how long they are together. An empty name is the directory itself; a
/// symbolic link is not followed. Older kernels are asked by a path through `/proc`, which takes
/// them three times as long.
///
/// # Errors
/// The kernel's error; ERANGE when `names` is too short, and the names of one inode are 64 KiB at
/// most.
pub fn names_at(dir: BorrowedFd<'_>, name: &CStr, names: &mut [u8]) -> io::Result<usize> {
    if !MISSING.load(Ordering::Relaxed) {
        let empty = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: the kernel reads the name up to its zero byte and writes at most `names.len()`
        // bytes to `names`; both live for the call.
        let len = unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                dir.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW | empty,
                names.as_mut_ptr(),
                names.len(),
            )
        };
        if let Ok(len) = usize::try_from(len) {
            return Ok(len);
        }
        let err = io::Error::last_os_error();
        if !matches!(err.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
            return Err(err);
        }
        MISSING.store(true, Ordering::Relaxed);
    }
    by_path(dir, name, names)
}

fn by_path(dir: BorrowedFd<'_>, name: &CStr, names: &mut [u8]) -> io::Result<usize> {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(OsStr::from_bytes(name.to_bytes()));
    if name.is_empty() {
        // The descriptor's own link must be followed.
        path.push(".");
    }
    Ok(llistxattr(&path, names)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use rustix::fs::{XattrFlags, setxattr};

    use super::*;

    #[test]
    fn both_ways_tell_the_same() {
        let temp = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| temp.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        std::fs::write(path("plain"), "").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        setxattr(path("file"), "user.one", b"1", XattrFlags::empty()).unwrap();
        setxattr(path("file"), "user.two", b"2", XattrFlags::empty()).unwrap();
        setxattr(temp.path(), "user.dir", b"3", XattrFlags::empty()).unwrap();
        let dir = File::open(temp.path()).unwrap();
        let list = |read: fn(BorrowedFd<'_>, &CStr, &mut [u8]) -> io::Result<usize>, name| {
            let mut names = [0; 256];
            let len = read(dir.as_fd(), name, &mut names)?;
            let mut names: Vec<_> = names[..len].split(|b| *b == 0).map(<[u8]>::to_vec).collect();
            names.sort();
            names.retain(|n| n.starts_with(b"user."));
            Ok::<_, io::Error>(names)
        };
        for (name, expected) in
            [(c"file", vec!["user.one", "user.two"]), (c"plain", vec![]), (c"link", vec![])]
        {
            let expected: Vec<_> = expected.iter().map(|n| n.as_bytes().to_vec()).collect();
            assert_eq!(list(names_at, name).unwrap(), expected, "{name:?}");
            assert_eq!(list(by_path, name).unwrap(), expected, "{name:?}");
        }
        assert_eq!(list(names_at, c"").unwrap(), [b"user.dir"]);
        assert_eq!(list(by_path, c"").unwrap(), [b"user.dir"]);
        for read in [names_at, by_path] {
            let gone = list(read, c"gone").unwrap_err();
            assert_eq!(gone.kind(), io::ErrorKind::NotFound);
            assert_eq!(
                read(dir.as_fd(), c"file", &mut [0; 4]).unwrap_err().raw_os_error(),
                Some(libc::ERANGE)
            );
        }
    }
}
