//! User namespaces as values: a descriptor that carries an id mapping, for id-mapped mounts.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// One range of a mapping: `length` ids from `inside` on appear as those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id outside it.
    pub outside: u32,
    /// How many ids.
    pub length: u32,
}

/// Makes a user namespace with these mappings and returns its descriptor. Nobody lives in it: the
/// process that made it is gone when this returns.
///
/// # Errors
/// The kernel's error; EINVAL for a mapping it refuses.
pub fn create(uids: &[IdRange], gids: &[IdRange]) -> io::Result<OwnedFd> {
    let (hold, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: without CLONE_VM the child has its own copy of the memory, and the null stack makes
    // it go on with a copy of ours. Other threads do not exist in the child, so it calls nothing
    // but `close`, `read` and `_exit`, which take no locks.
    let pid = unsafe { libc::syscall(libc::SYS_clone, CLONE_FLAGS, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: `release` is the child's own copy, closed so that the read below sees the end
        // when the parent lets go; the buffer is one byte long as stated.
        unsafe {
            let mut byte = 0u8;
            libc::close(release.as_raw_fd());
            libc::read(hold.as_raw_fd(), std::ptr::from_mut(&mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    let mapped = map(pid, uids, gids);
    let mut status = 0;
    // SAFETY: `pid` is our child and not yet waited for, so it names no other process; `status`
    // outlives the call. (Closing `release` alone would not do: the child of a concurrent call
    // may hold a copy of it.)
    unsafe {
        libc::kill(pid as libc::pid_t, libc::SIGKILL);
        while libc::waitpid(pid as libc::pid_t, &raw mut status, libc::__WALL) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    drop(release);
    mapped
}

/// The mapping of the text form `inside:outside:length[,...]`, as snapshot labels carry it.
///
/// # Errors
/// InvalidInput for other text.
pub fn parse_ranges(text: &str) -> io::Result<Vec<IdRange>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("bad id mapping {text:?}"));
    text.split(',')
        .map(|range| {
            let numbers: Vec<u32> = range
                .split(':')
                .map(|n| n.parse().map_err(|_| bad()))
                .collect::<io::Result<_>>()?;
            match numbers[..] {
                [inside, outside, length] if length > 0 => Ok(IdRange { inside, outside, length }),
                _ => Err(bad()),
            }
        })
        .collect()
}

fn map(pid: libc::c_long, uids: &[IdRange], gids: &[IdRange]) -> io::Result<OwnedFd> {
    let text = |ranges: &[IdRange]| {
        ranges
            .iter()
            .map(|r| format!("{} {} {}\n", r.inside, r.outside, r.length))
            .collect::<String>()
    };
    fs::write(format!("/proc/{pid}/uid_map"), text(uids))?;
    fs::write(format!("/proc/{pid}/gid_map"), text(gids))?;
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// A new user namespace. No exit signal: the child is invisible to code of ours or a library's that
/// waits for any child.
const CLONE_FLAGS: libc::c_int = libc::CLONE_NEWUSER;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_label_text() {
        let one = IdRange { inside: 0, outside: 1000, length: 10 };
        assert_eq!(parse_ranges("0:1000:10").unwrap(), [one]);
        assert_eq!(parse_ranges("0:1000:10,10:5:1").unwrap().len(), 2);
        for bad in ["", "0", "0:1", "0:1:0", "0:1:x", "0:1:2:3", "-1:0:1"] {
            assert!(parse_ranges(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn root_makes_namespaces_from_many_threads() {
        let range = IdRange { inside: 0, outside: 100_000, length: 65_536 };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        create(&[range], &[range]).unwrap();
                    }
                });
            }
        });
    }
}
