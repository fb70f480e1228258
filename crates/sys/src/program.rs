//! Programs that a container cannot write to, though it sees a process that runs them.
//!
//! A process that enters a container shows its program as `/proc/PID/exe`. A privileged process
//! in there could keep that open and write to the program once nobody runs it (CVE-2019-5736).
//! Through a mount that is read-only it cannot, and one that is attached nowhere can be remounted
//! by nobody. It costs no memory: its pages are those of the file.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::mountattr::{Attributes, set_attributes};

/// `MOUNT_ATTR_RDONLY` of linux/mount.h.
const ATTR_RDONLY: u64 = 1;

/// The program at `path` on a read-only mount of its own, which lasts as long as the descriptor
/// and every process that was started by it. Execute it as [`path_of`] the descriptor.
///
/// # Errors
/// The kernel's: EPERM without privileges, ENOSYS before Linux 5.12.
pub fn protect(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let program = open_tree(rustix::fs::CWD, path, flags)?;
    set_attributes(&program, &Attributes { set: ATTR_RDONLY, ..Attributes::default() }, false)?;
    Ok(program)
}

/// A path to what an open descriptor of this process refers to.
pub fn path_of(program: &OwnedFd) -> PathBuf {
    // Not `self`: the child that executes it has a descriptor of that number, too, but a thread of
    // another process that looks at the path has not.
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd()))
}

/// Whether the program of this process cannot be written to through `/proc/PID/exe`: it is on a
/// read-only mount, or a sealed file in memory.
pub fn is_protected() -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(program) = rustix::fs::open("/proc/self/exe", flags, Mode::empty()) else {
        return false;
    };
    let sealed = rustix::fs::fcntl_get_seals(program.as_fd());
    sealed.is_ok_and(|seals| seals.contains(SealFlags::WRITE | SealFlags::SEAL))
        || rustix::fs::fstatvfs(program.as_fd())
            .is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_a_protected_program_runs_and_cannot_be_written_to() {
        let program = protect(Path::new("/bin/true")).expect("root may mount");
        let path = path_of(&program);
        let ended = std::process::Command::new(&path).status().expect("runs");
        assert!(ended.success());
        let err = std::fs::OpenOptions::new().write(true).open(&path).expect_err("read-only");
        assert_eq!(err.raw_os_error(), Some(libc::EROFS));
    }

    #[test]
    fn root_a_process_knows_whether_it_is_protected() {
        // This test's own program, started again both ways.
        const ASKED: &str = "GANTRY_SYS_IS_PROTECTED";
        if std::env::var_os(ASKED).is_some() {
            std::process::exit(if is_protected() { 77 } else { 78 });
        }
        let own = std::env::current_exe().expect("it has a path");
        let run = |path: &Path| {
            let name = "program::tests::root_a_process_knows_whether_it_is_protected";
            let mut command = std::process::Command::new(path);
            command.args([name, "--exact"]).env(ASKED, "1").stdout(std::process::Stdio::null());
            command.status().expect("runs").code()
        };
        assert_eq!(run(&own), Some(78));
        let program = protect(&own).expect("root may mount");
        assert_eq!(run(&path_of(&program)), Some(77));
    }
}
