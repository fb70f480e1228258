//! Another program in place of this one, in the same process; and one that is given a descriptor.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd};

/// Executes `program` in place of this one, with this environment. Returns only when that failed.
///
/// Every signal is blocked until the next program calls [`unblock_signals`]: before it has its
/// handlers one would end the process. Descriptors without close-on-exec stay open.
///
/// The process must have one thread that matters: the others end without a word.
pub fn replace(program: &Path, args: &[impl AsRef<OsStr>]) -> io::Error {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
    let program = match text(program.as_os_str()) {
        Ok(program) => program,
        Err(err) => return err,
    };
    let args: Vec<CString> = match args.iter().map(|arg| text(arg.as_ref())).collect() {
        Ok(args) => args,
        Err(err) => return err,
    };
    let mut pointers: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let before = mask_signals(true);
    // SAFETY: program and each argument are C strings that live until after the call, and the
    // list of arguments ends with a null pointer.
    unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
    let err = io::Error::last_os_error();
    if let Some(before) = before {
        // SAFETY: the set was filled in by the kernel; nothing is returned.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut())
        };
    }
    err
}

/// Lets signals in that [`replace`] has blocked.
pub fn unblock_signals() {
    mask_signals(false);
}

/// Blocks every signal or none; returns what was blocked before.
fn mask_signals(block: bool) -> Option<libc::sigset_t> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for writing; the first is initialised before it is read, and
    // the second is read only when the call that fills it in has succeeded.
    unsafe {
        if block {
            libc::sigfillset(set.as_mut_ptr());
        } else {
            libc::sigemptyset(set.as_mut_ptr());
        }
        let done = libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), before.as_mut_ptr());
        (done == 0).then(|| before.assume_init())
    }
}

/// Takes a descriptor that the program before this one has left open, and that this one knows by
/// its number only. It is closed on exec from now on. Take each number once, before anything else
/// could have come to own it.
///
/// # Errors
/// It is not open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call looks at the number only, and fails for one that is not open.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the contract above nothing else in this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts `command` with `fd` open as its descriptor `number`, which is 3 or higher.
///
/// # Errors
/// Those of starting it.
pub fn spawn_with(command: &mut Command, fd: BorrowedFd<'_>, number: RawFd) -> io::Result<Child> {
    if number < 3 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // The standard library tells of a failed exec over a pipe of its own: while something has the
    // number in this process that pipe cannot get it, to be replaced in the child.
    let _taken = fcntl_dupfd_cloexec(fd, number)?;
    // Another number than the wanted one: making a descriptor a copy of itself would leave it to
    // be closed on exec.
    let source = fcntl_dupfd_cloexec(fd, number + 1)?;
    debug_assert!(fcntl_getfd(&source).is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC)));
    let from = source.as_raw_fd();
    // SAFETY: between fork and exec the closure makes one system call, on two numbers, and
    // allocates nothing: dup2 is safe there. The source is open until the command has started.
    unsafe {
        command.pre_exec(move || match libc::dup2(from, number) {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn();
    drop(source);
    child
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_signals_are_as_before() {
        let err = replace(Path::new("/nonexistent"), &["x"]);
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("this thread");
        let blocked = status.lines().find(|line| line.starts_with("SigBlk")).expect("a line");
        assert!(blocked.ends_with("0000000000000000"), "{blocked}");
    }

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        assert!(inherited(-1).is_err());
        assert!(inherited(1_000_000).is_err());
    }

    #[test]
    fn a_program_is_given_a_descriptor_by_number() {
        for number in [3, 5] {
            let (read, mut write) = io::pipe().expect("a pipe");
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &format!("exec cat <&{number}")]);
            command.stdout(std::process::Stdio::piped());
            let child = spawn_with(&mut command, read.as_fd(), number).expect("it starts");
            write.write_all(b"word").expect("written");
            drop(write);
            let out = child.wait_with_output().expect("it ends");
            assert_eq!(out.stdout, b"word");
        }
        let (read, _write) = io::pipe().expect("a pipe");
        let missing = spawn_with(&mut Command::new("/no/such/program"), read.as_fd(), 3);
        assert_eq!(missing.expect_err("not there").kind(), io::ErrorKind::NotFound);
        assert!(spawn_with(&mut Command::new("/bin/true"), read.as_fd(), 1).is_err());
    }
}
