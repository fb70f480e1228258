//! Running another program inside a container that runs: what `runc exec` does, in one fork.
//!
//! [`Entry::start`] makes the process and returns at once; the process reports over a socket how
//! far it came. It joins the container's cgroups, takes its limits, enters the namespaces of the
//! container's init, becomes the user it is to be and executes the program. Whatever goes wrong
//! before that last step is told as [`Report::Failed`] and leaves nothing behind.
//!
//! **The fork is from a thread of its own.** A process enters a pid namespace by being born into
//! it, so the parent has to set the namespace of its children; a thread that ends right after
//! never has to set it back. And other threads do not exist in the child, so it allocates nothing,
//! takes no lock and calls the kernel directly: all it needs is laid out before.
//!
//! **Nothing of the host leaks.** Before the child enters a namespace it has closed every
//! descriptor but its standard streams and the report, and cannot be traced or looked into by
//! processes of the container. Its `/proc/PID/exe` still names the program that called this, and a
//! privileged process of the container could open that: so callers make sure that their own
//! program cannot be written to through it ([`crate::program::is_protected`]).

mod child;

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Such a thread calls the kernel and little else.
const STACK_BYTES: usize = 128 * 1024;

/// A namespace a process enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Namespace {
    /// `cgroup`
    Cgroup = libc::CLONE_NEWCGROUP,
    /// `ipc`
    Ipc = libc::CLONE_NEWIPC,
    /// `mnt`
    Mount = libc::CLONE_NEWNS,
    /// `net`
    Network = libc::CLONE_NEWNET,
    /// `pid`
    Pid = libc::CLONE_NEWPID,
    /// `uts`
    Uts = libc::CLONE_NEWUTS,
}

/// A limit on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The limit in force.
    pub soft: u64,
    /// How far it may be raised.
    pub hard: u64,
}

/// The five capability sets, a bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What can be had at all.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What may be in force.
    pub permitted: u64,
    /// What survives an execve.
    pub inheritable: u64,
    /// What survives an execve without privileges of the file.
    pub ambient: u64,
}

/// Where the standard streams come from.
#[derive(Debug)]
pub enum Streams<'a> {
    /// Input, output, error.
    Three([BorrowedFd<'a>; 3]),
    /// A new terminal of the container's; its master comes with [`Report::Terminal`].
    Terminal {
        /// Rows and columns, unless left as they are.
        size: Option<(u16, u16)>,
    },
}

/// What to run, where and as whom.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The container's init, as a pidfd.
    pub init: BorrowedFd<'a>,
    /// The namespaces of it to enter; [`Namespace::Mount`] must be one.
    pub namespaces: &'a [Namespace],
    /// `cgroup.procs` of every cgroup to join, open for writing.
    pub cgroups: &'a [OwnedFd],
    /// `oom_score_adj`, unless left as it is.
    pub oom_score_adj: Option<i32>,
    /// Limits to set.
    pub limits: &'a [Limit],
    /// Session keyring to join by this name.
    pub keyring: Option<CString>,
    /// Standard streams.
    pub streams: Streams<'a>,
    /// Never gain privileges by an execve.
    pub no_new_privileges: bool,
    /// A seccomp filter as the kernel takes it (`struct sock_filter`, 8 bytes each).
    pub seccomp: Option<&'a [u8]>,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Further groups.
    pub groups: &'a [u32],
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Working directory.
    pub directory: CString,
    /// The program: the first of these that is an executable file.
    pub candidates: Vec<CString>,
    /// Its arguments, its name first.
    pub arguments: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
    /// Which of the environment is to be HOME, taken from the container's passwd file.
    pub home: Option<usize>,
}

/// A process on its way into the container.
#[derive(Debug)]
pub struct Started {
    /// Its pid, as the caller sees it.
    pub pid: u32,
    /// The process.
    pub process: OwnedFd,
    /// Where it reports; every message is one [`Report`], and the end means that the program runs
    /// if [`Report::Ready`] was the last one.
    pub reports: OwnedFd,
}

/// What the process has to say.
#[derive(Debug)]
pub enum Report {
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// Everything is set up, the execve comes next.
    Ready,
    /// It gives up.
    Failed(Failure),
}

/// Why a process could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// At which step.
    pub step: Step,
    /// The kernel's error.
    pub errno: i32,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The steps of getting into a container.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $($(#[$doc])* $name,)* }

        impl Step {
            const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What it is, in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

steps! {
    /// Signals as a program expects them.
    Signals = "signals",
    /// Writing to `cgroup.procs`.
    Cgroup = "join the cgroups",
    /// Writing to `oom_score_adj`.
    OomScore = "oom_score_adj",
    /// `prlimit`.
    Limits = "resource limits",
    /// Closing and moving descriptors.
    Descriptors = "descriptors",
    /// `setns`.
    Namespaces = "enter the namespaces",
    /// Root of the container, in a session of its own.
    Session = "new session",
    /// `keyctl`.
    Keyring = "session keyring",
    /// A pseudo-terminal.
    Terminal = "terminal",
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges = "no_new_privs",
    /// The filter.
    Seccomp = "seccomp",
    /// The working directory.
    Directory = "working directory",
    /// A working directory that is not below the container's root.
    Outside = "working directory outside of the container",
    /// The bounding set.
    Bounding = "bounding set",
    /// The container's passwd file.
    Home = "HOME",
    /// Owner of the standard streams.
    Owner = "owner of the streams",
    /// User and groups.
    User = "user",
    /// Capabilities.
    Capabilities = "capabilities",
    /// Finding the program.
    Lookup = "find the program",
    /// `execve`.
    Execute = "execve",
}

impl Entry<'_> {
    /// Makes the process; see the module's text.
    ///
    /// # Errors
    /// The kernel's, when there is no process: EINVAL or ENOSYS where it is too old for this
    /// (before Linux 5.8).
    pub fn start(&self) -> io::Result<Started> {
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::SEQPACKET;
        let (reports, report) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        let plan = child::Plan::new(self, report.as_raw_fd())?;
        let parent = || {
            if self.namespaces.contains(&Namespace::Pid) {
                // SAFETY: changes the pid namespace of this thread's children, and nothing else;
                // the thread ends before anyone else could run on it.
                let set = unsafe { libc::setns(self.init.as_raw_fd(), libc::CLONE_NEWPID) };
                if set != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            plan.fork()
        };
        let (pid, process) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, parent)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(Started { pid, process, reports })
    }
}

/// Takes one report; none at the end of them.
///
/// # Errors
/// EAGAIN when there is none yet (on a socket that does not wait).
pub fn receive(reports: impl AsFd) -> io::Result<Option<Report>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut message = [0_u8; MESSAGE_BYTES];
    let data = &mut [io::IoSliceMut::new(&mut message)];
    let got = recvmsg(reports, data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let terminal = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let [kind, step, a, b, c, d] = message;
    Ok(Some(match (kind, terminal) {
        (KIND_READY, _) => Report::Ready,
        (KIND_TERMINAL, Some(terminal)) => Report::Terminal(terminal),
        (KIND_FAILED, _) => {
            let step = Step::ALL.get(usize::from(step)).copied().ok_or_else(bad)?;
            Report::Failed(Failure { step, errno: i32::from_ne_bytes([a, b, c, d]) })
        }
        _ => return Err(bad()),
    }))
}

/// A message is its kind, the step and the error.
const MESSAGE_BYTES: usize = 6;
const KIND_READY: u8 = 1;
const KIND_TERMINAL: u8 = 2;
const KIND_FAILED: u8 = 3;

/// Pointers to strings, with the null at the end that the kernel wants.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let end = std::iter::once(std::ptr::null());
    strings.iter().map(|s| s.as_ptr()).chain(end).collect()
}

/// Takes a descriptor the kernel has just made.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass what a successful system call returned to them alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests;
