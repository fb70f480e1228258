//! The seccomp filter that a process has, to give it to another one of the same container.
//!
//! The kernel tells a filter only to a tracer. So a child process traces for a moment, reads and
//! lets go; to the parent, which may itself wait for the traced process, nothing of it shows.

use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, RawFd};

/// The kernel takes no longer programs (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;
const INSTRUCTION_BYTES: usize = 8;

/// The filter that was installed first in the process `pid` (and so the one that its runtime gave
/// it), as the kernel takes it. None when it has no filter, or has anything else about it that
/// could not be handed on.
///
/// # Errors
/// The kernel's: ESRCH for a process that is gone, EPERM when it is traced already, EACCES when
/// this process is under a filter itself.
pub fn first_filter(pid: u32) -> io::Result<Option<Vec<u8>>> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut filter = vec![0_u8; INSTRUCTIONS_MAX * INSTRUCTION_BYTES];
    // SAFETY: without CLONE_VM the child has its own copy of the memory, and the null stack makes
    // it go on with a copy of ours. Other threads do not exist in the child, so it makes only
    // system calls. No exit signal: nobody else who waits for children sees it.
    let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        trace(pid, &mut filter, write.as_raw_fd());
    }
    drop(write);
    let mut answer = Vec::new();
    let got = std::fs::File::from(read).read_to_end(&mut answer);
    let mut status = 0;
    // SAFETY: our child, not waited for yet, so the pid names no other process.
    unsafe {
        while libc::waitpid(child as libc::pid_t, &raw mut status, libc::__WALL) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    got?;
    match answer.split_first_chunk::<4>() {
        Some((result, filter)) => match i32::from_ne_bytes(*result) {
            0 if filter.is_empty() => Ok(None),
            0 => Ok(Some(filter.to_vec())),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The child: answers with an error number, and the filter. Only system calls.
fn trace(pid: libc::pid_t, filter: &mut [u8], answer: RawFd) -> ! {
    // SAFETY: the buffers are as long as the kernel may write: a filter has at most
    // `INSTRUCTIONS_MAX` instructions. The tracer is this process, which ends here, and with it
    // the tracing at the latest.
    unsafe {
        let count = read_filter(pid, filter.as_mut_ptr());
        let errno: i32 = if count < 0 { *libc::__errno_location() } else { 0 };
        let errno = if errno == libc::ENOENT { 0 } else { errno };
        libc::write(answer, std::ptr::from_ref(&errno).cast(), 4);
        let bytes = usize::try_from(count).unwrap_or(0) * INSTRUCTION_BYTES;
        if bytes > 0 {
            // Half of what a pipe takes at once.
            libc::write(answer, filter.as_ptr().cast(), bytes);
        }
        libc::_exit(0)
    }
}

/// # Safety
/// `to` has room for [`INSTRUCTIONS_MAX`] instructions.
unsafe fn read_filter(pid: libc::pid_t, to: *mut u8) -> libc::c_long {
    // SAFETY: plain system calls; the one that writes to memory is given the caller's.
    unsafe {
        if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) < 0
            || libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) < 0
            || libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) < 0
        {
            return -1;
        }
        let count = libc::ptrace(PTRACE_SECCOMP_GET_FILTER, pid, 0, to);
        let errno = *libc::__errno_location();
        libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0);
        *libc::__errno_location() = errno;
        // No filter at all is EINVAL: the process is not in that mode.
        if count < 0 && errno == libc::EINVAL { 0 } else { count }
    }
}

/// linux/ptrace.h; the first filter of a process has number 0.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_a_process_without_a_filter_has_none() {
        let mut child = std::process::Command::new("/bin/sleep").arg("100").spawn().expect("runs");
        assert_eq!(first_filter(child.id()).expect("readable"), None);
        child.kill().expect("still there");
        child.wait().expect("reaped");
        assert!(first_filter(child.id()).is_err());
    }
}
