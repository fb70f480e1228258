//! The child's side: nothing here allocates, locks or panics, see the parent module.

use std::ffi::{c_char, c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use super::{
    Capabilities, Entry, KIND_FAILED, KIND_READY, KIND_TERMINAL, Limit, MESSAGE_BYTES, Namespace,
    Step, Streams, owned, pointers,
};

/// A passwd line longer than this ends the search for HOME, as with runc.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// The kernel's own limit for a path, and so for `HOME=` in an environment made here.
const HOME_BYTES_MAX: usize = 4096 + 6;
/// Descriptors the child keeps on its way into the container, right after its streams.
const REPORT_FD: RawFd = 3;
const INIT_FD: RawFd = 4;

/// What goes wrong: the step and the error.
type Outcome<T = ()> = Result<T, (Step, c_int)>;

/// Everything the child needs, laid out in memory.
pub(super) struct Plan<'a> {
    entry: &'a Entry<'a>,
    report: RawFd,
    namespaces: c_int,
    /// The host's /proc, whatever the container has there.
    proc: OwnedFd,
    null: OwnedFd,
    oom_score_adj: Option<String>,
    filter: Option<libc::sock_fprog>,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// Empty unless HOME is to be found; memory that is not touched costs nothing.
    passwd: Vec<u8>,
    home: Vec<u8>,
}

// SAFETY: the pointers lead into strings of the entry and buffers of the plan, which nobody changes
// while the plan exists; which thread follows them makes no difference.
unsafe impl Send for Plan<'_> {}

impl<'a> Plan<'a> {
    pub(super) fn new(entry: &'a Entry<'a>, report: RawFd) -> io::Result<Self> {
        use rustix::fs::{Mode, OFlags, open};
        let flags = OFlags::CLOEXEC | OFlags::PATH | OFlags::DIRECTORY;
        let proc = open("/proc", flags, Mode::empty())?;
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let namespaces = (entry.namespaces.iter())
            .filter(|ns| **ns != Namespace::Pid)
            .fold(0, |all, ns| all | *ns as c_int);
        let filter = entry.seccomp.map(filter).transpose()?;
        let sought = |bytes| if entry.home.is_some() { vec![0; bytes] } else { Vec::new() };
        Ok(Self {
            report,
            namespaces,
            proc,
            null,
            oom_score_adj: entry.oom_score_adj.map(|score| score.to_string()),
            filter,
            arguments: pointers(&entry.arguments),
            environment: pointers(&entry.environment),
            passwd: sought(LINE_BYTES_MAX),
            home: sought(HOME_BYTES_MAX),
            entry,
        })
    }

    /// Makes the child. In the child this does not return.
    pub(super) fn fork(mut self) -> io::Result<(u32, OwnedFd)> {
        let mut pidfd: c_int = -1;
        let args = CloneArgs {
            flags: CLONE_CLEAR_SIGHAND | libc::CLONE_PIDFD as u64,
            pidfd: std::ptr::from_mut(&mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        // SAFETY: without CLONE_VM the child has its own copy of the memory and goes on with a
        // copy of this stack. Other threads do not exist in it, so it calls only what takes no
        // lock and allocates nothing, and never returns from `run`. The arguments outlive the
        // call.
        let pid = unsafe {
            libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<CloneArgs>())
        };
        match pid {
            0 => self.run(),
            pid if pid < 0 => Err(io::Error::last_os_error()),
            pid => Ok((u32::try_from(pid).unwrap_or(0), owned(pidfd))),
        }
    }

    fn run(&mut self) -> ! {
        if let Err((step, errno)) = self.enter() {
            let [a, b, c, d] = errno.to_ne_bytes();
            tell(self.report, &[KIND_FAILED, step as u8, a, b, c, d]);
        }
        // SAFETY: ends this process, which has no other thread, and runs nothing of the parent's.
        unsafe { libc::_exit(1) }
    }

    /// Returns only when it fails.
    fn enter(&mut self) -> Outcome {
        self.on_the_host()?;
        self.in_the_container()?;
        self.as_the_user()?;
        self.execute()
    }

    /// What needs the host's files and privileges.
    fn on_the_host(&mut self) -> Outcome {
        default_signals()?;
        for procs in self.entry.cgroups {
            write(procs.as_raw_fd(), b"0").map_err(|e| (Step::Cgroup, e))?;
        }
        if let Some(score) = &self.oom_score_adj {
            let score = score.as_bytes();
            set_oom_score(self.proc.as_raw_fd(), score).map_err(|e| (Step::OomScore, e))?;
        }
        for limit in self.entry.limits {
            set_limit(limit).map_err(|e| (Step::Limits, e))?;
        }
        let null = self.null.as_raw_fd();
        let streams = match &self.entry.streams {
            Streams::Three(streams) => streams.map(|fd| fd.as_raw_fd()),
            Streams::Terminal { .. } => [null; 3],
        };
        let report = keep(streams, self.report, self.entry.init.as_raw_fd());
        report.map_err(|e| (Step::Descriptors, e))?;
        self.report = REPORT_FD;
        Ok(())
    }

    fn in_the_container(&self) -> Outcome {
        let at = |step| move |errno| (step, errno);
        prctl(libc::PR_SET_DUMPABLE, 0).map_err(at(Step::Namespaces))?;
        call(libc::SYS_setns, [INIT_FD as c_long, c_long::from(self.namespaces), 0])
            .map_err(at(Step::Namespaces))?;
        close_from(INIT_FD).map_err(at(Step::Descriptors))?;
        call(libc::SYS_setsid, [0; 3]).map_err(at(Step::Session))?;
        // Root of the container with no group left of the caller's.
        call(libc::SYS_setuid, [0; 3]).map_err(at(Step::Session))?;
        call(libc::SYS_setgid, [0; 3]).map_err(at(Step::Session))?;
        call(libc::SYS_setgroups, [0; 3]).map_err(at(Step::Session))?;
        if let Some(name) = &self.entry.keyring {
            let arguments = [KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr() as c_long, 0];
            match call(libc::SYS_keyctl, arguments) {
                // A kernel without keyrings has none to inherit either.
                Ok(_) | Err(libc::ENOSYS) => {}
                Err(errno) => return Err((Step::Keyring, errno)),
            }
        }
        if let Streams::Terminal { size } = self.entry.streams {
            self.terminal(size).map_err(at(Step::Terminal))?;
        }
        if self.entry.no_new_privileges {
            prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(at(Step::NoNewPrivileges))?;
            return Ok(());
        }
        // It takes a privilege, which is gone later.
        self.filter()
    }

    fn terminal(&self, size: Option<(u16, u16)>) -> Result<(), c_int> {
        let master = open(c"/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)?;
        if !is_terminal_master(master)? {
            return Err(libc::ENOTTY);
        }
        let unlock: c_int = 0;
        ioctl(master, libc::TIOCSPTLCK, std::ptr::from_ref(&unlock) as c_long)?;
        if let Some((rows, columns)) = size {
            let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            ioctl(master, libc::TIOCSWINSZ, std::ptr::from_ref(&size) as c_long)?;
        }
        send_terminal(self.report, master)?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let slave = ioctl(master, libc::TIOCGPTPEER, c_long::from(flags))?;
        for stream in 0..REPORT_FD {
            call(libc::SYS_dup3, [slave, c_long::from(stream), 0])?;
        }
        close_from(REPORT_FD + 1)?;
        ioctl(0, libc::TIOCSCTTY, 0).map(drop)
    }

    fn filter(&self) -> Outcome {
        let Some(filter) = &self.filter else { return Ok(()) };
        let arguments = [SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(filter) as c_long];
        call(libc::SYS_seccomp, arguments).map(drop).map_err(|e| (Step::Seccomp, e))
    }

    fn as_the_user(&mut self) -> Outcome {
        let at = |step| move |errno| (step, errno);
        let entry = self.entry;
        let directory = entry.directory.as_ptr() as c_long;
        let denied = match call(libc::SYS_chdir, [directory, 0, 0]) {
            Ok(_) => false,
            // The user it will be may be allowed what root is not, on a network filesystem.
            Err(libc::EACCES | libc::EPERM) => true,
            Err(errno) => return Err((Step::Directory, errno)),
        };
        drop_bounding(entry.capabilities.bounding).map_err(at(Step::Bounding))?;
        prctl(libc::PR_SET_KEEPCAPS, 1).map_err(at(Step::User))?;
        if let Some(slot) = entry.home {
            self.find_home(entry.uid).map_err(at(Step::Home))?;
            if let Some(slot) = self.environment.get_mut(slot) {
                *slot = self.home.as_ptr().cast();
            }
        }
        own_streams(entry.uid).map_err(at(Step::Owner))?;
        let (count, groups) = (entry.groups.len() as c_long, entry.groups.as_ptr() as c_long);
        call(libc::SYS_setgroups, [count, groups, 0]).map_err(at(Step::User))?;
        call(libc::SYS_setgid, [c_long::from(entry.gid), 0, 0]).map_err(at(Step::User))?;
        call(libc::SYS_setuid, [c_long::from(entry.uid), 0, 0]).map_err(at(Step::User))?;
        if denied {
            call(libc::SYS_chdir, [directory, 0, 0]).map_err(at(Step::Directory))?;
        }
        is_inside().map_err(at(Step::Outside))?;
        prctl(libc::PR_SET_KEEPCAPS, 0).map_err(at(Step::User))?;
        set_capabilities(&entry.capabilities).map_err(at(Step::Capabilities))
    }

    fn execute(&mut self) -> Outcome {
        let entry = self.entry;
        let program = (entry.candidates.iter())
            .find_map(|path| match is_executable(path.as_ptr()) {
                Ok(true) => Some(Ok(path.as_ptr())),
                Ok(false) => None,
                Err(errno) => Some(Err((Step::Lookup, errno))),
            })
            .unwrap_or(Err((Step::Lookup, libc::ENOENT)))?;
        // From here on the filter may refuse to tell more.
        tell(self.report, &[KIND_READY, 0, 0, 0, 0, 0]);
        if entry.no_new_privileges {
            self.filter()?;
        }
        let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
        let arguments = [program as c_long, arguments as c_long, environment as c_long];
        let Err(errno) = call(libc::SYS_execve, arguments) else { return Ok(()) };
        Err((Step::Execute, errno))
    }

    /// Leaves `HOME=` and what the container's passwd file says of `uid` in `home`; `/` when it
    /// says nothing.
    fn find_home(&mut self, uid: u32) -> Result<(), c_int> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        put_home(&mut self.home, b"/")?;
        // No file is no entry.
        let Ok(file) = open(c"/etc/passwd", flags) else { return Ok(()) };
        let mut filled = 0;
        loop {
            let Some(room) = self.passwd.get_mut(filled..).filter(|room| !room.is_empty()) else {
                return Err(libc::E2BIG);
            };
            let got = read(file, room)?;
            filled += got;
            let mut done = 0;
            let text = self.passwd.get(..filled).unwrap_or_default();
            while let Some(rest) = text.get(done..).filter(|rest| !rest.is_empty()) {
                let end = rest.iter().position(|b| *b == b'\n');
                // The last line may lack its end.
                let Some(length) = end.or((got == 0).then_some(rest.len())) else { break };
                if let Some(home) = home_in(rest.get(..length).unwrap_or_default(), uid) {
                    return put_home(&mut self.home, home);
                }
                done += length + 1;
            }
            if got == 0 {
                return Ok(());
            }
            let done = done.min(filled);
            self.passwd.copy_within(done..filled, 0);
            filled -= done;
        }
    }
}

/// The home of a passwd line, if it is the user's. Numbers that are none count as 0, as with runc.
pub(super) fn home_in(line: &[u8], uid: u32) -> Option<&[u8]> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    let mut fields = line.split(|b| *b == b':');
    let number = fields.nth(2).and_then(|text| std::str::from_utf8(text).ok());
    let number = number.and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    (number == i64::from(uid)).then(|| fields.nth(2).unwrap_or_default())
}

fn put_home(to: &mut [u8], home: &[u8]) -> Result<(), c_int> {
    const NAME: &[u8] = b"HOME=";
    let text = NAME.iter().chain(home).chain(&[0]);
    if NAME.len() + home.len() + 1 > to.len() || home.contains(&0) {
        return Err(libc::E2BIG);
    }
    to.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    Ok(())
}

/// Moves the streams to 0, 1 and 2, the report and the init behind them, and closes all others.
fn keep(streams: [RawFd; 3], report: RawFd, init: RawFd) -> Result<(), c_int> {
    // First out of the way of the places they will take.
    const AWAY: c_long = 10;
    let mut away = [0; 5];
    let [stdin, stdout, stderr] = streams;
    for (away, fd) in away.iter_mut().zip([stdin, stdout, stderr, report, init]) {
        *away = call(libc::SYS_fcntl, [fd.into(), libc::F_DUPFD_CLOEXEC.into(), AWAY])?;
    }
    for (place, fd) in (0_i32..).zip(away) {
        let flags = if place < REPORT_FD { 0 } else { libc::O_CLOEXEC };
        call(libc::SYS_dup3, [fd, place.into(), flags.into()])?;
    }
    close_from(INIT_FD + 1)
}

fn close_from(first: RawFd) -> Result<(), c_int> {
    call(libc::SYS_close_range, [first.into(), c_long::from(u32::MAX), 0]).map(drop)
}

/// What the parent ignores or blocks is none of the program's business.
fn default_signals() -> Outcome {
    let at = |errno| (Step::Signals, errno);
    // The kernel's form: handler, flags, restorer, mask.
    let default = [0_u64; 4];
    for signal in 1..=c_long::from(SIGNAL_MAX) {
        if signal == c_long::from(libc::SIGKILL) || signal == c_long::from(libc::SIGSTOP) {
            continue;
        }
        let action = default.as_ptr() as c_long;
        call4(libc::SYS_rt_sigaction, [signal, action, 0, SIGNAL_SET_BYTES]).map_err(at)?;
    }
    let none = 0_u64;
    let arguments = [libc::SIG_SETMASK.into(), (&raw const none) as c_long, 0, SIGNAL_SET_BYTES];
    call4(libc::SYS_rt_sigprocmask, arguments).map(drop).map_err(at)
}

fn set_oom_score(proc: RawFd, score: &[u8]) -> Result<(), c_int> {
    let path = c"self/oom_score_adj".as_ptr() as c_long;
    let flags = c_long::from(libc::O_RDWR | libc::O_CLOEXEC);
    let file = call(libc::SYS_openat, [proc.into(), path, flags])? as RawFd;
    let mut text = [0; 16];
    let length = read(file, &mut text)?;
    if text.get(..length).unwrap_or_default().trim_ascii() == score {
        return Ok(());
    }
    write(file, score)
}

fn set_limit(limit: &Limit) -> Result<(), c_int> {
    let raw = [limit.soft, limit.hard];
    let arguments = [0, c_long::from(limit.resource), raw.as_ptr() as c_long, 0];
    call4(libc::SYS_prlimit64, arguments).map(drop)
}

fn drop_bounding(kept: u64) -> Result<(), c_int> {
    for capability in 0..u64::BITS {
        if kept & (1 << capability) != 0 {
            continue;
        }
        match call(libc::SYS_prctl, [libc::PR_CAPBSET_DROP.into(), capability.into(), 0]) {
            Ok(_) => {}
            // Past the last one that the kernel knows.
            Err(libc::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn set_capabilities(sets: &Capabilities) -> Result<(), c_int> {
    let header = [CAPABILITY_VERSION_3, 0];
    let half = |set: u64, high: bool| if high { (set >> 32) as u32 } else { set as u32 };
    let data = [false, true]
        .map(|high| [sets.effective, sets.permitted, sets.inheritable].map(|set| half(set, high)));
    call(libc::SYS_capset, [header.as_ptr() as c_long, data.as_ptr() as c_long, 0])?;
    // One that cannot be raised stays down, as with runc.
    let ambient = |action: c_int, capability: u32| {
        let arguments = [libc::PR_CAP_AMBIENT.into(), action.into(), capability.into(), 0, 0];
        let _ = call5(libc::SYS_prctl, arguments);
    };
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0);
    for capability in (0..u64::BITS).filter(|bit| sets.ambient & (1 << bit) != 0) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, capability);
    }
    Ok(())
}

/// Gives the standard streams to the user. /dev/null stays as it is, and so does what belongs to
/// someone who does not exist in here.
fn own_streams(uid: u32) -> Result<(), c_int> {
    let null = libc::makedev(1, 3);
    for stream in 0..REPORT_FD {
        let stat = status(stream)?;
        if stat.st_rdev == null || stat.st_uid == uid {
            continue;
        }
        let arguments = [stream.into(), c_long::from(uid), c_long::from(stat.st_gid)];
        match call(libc::SYS_fchown, arguments) {
            Ok(_) | Err(libc::EINVAL | libc::EPERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The kernel says `(unreachable)` of a directory that is not below the root.
fn is_inside() -> Result<(), c_int> {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    call(libc::SYS_getcwd, [path.as_mut_ptr() as c_long, path.len() as c_long, 0])?;
    if path[0] == b'/' { Ok(()) } else { Err(libc::ENOENT) }
}

/// Whether a file can be run: by its mode, and in fact. Where the two differ runtimes do, too.
fn is_executable(path: *const c_char) -> Result<bool, c_int> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    let (at, path, to) = (libc::AT_FDCWD.into(), path as c_long, stat.as_mut_ptr() as c_long);
    if call4(libc::SYS_newfstatat, [at, path, to, 0]).is_err() {
        return Ok(false);
    }
    // SAFETY: the call succeeded, so the kernel has filled it.
    let mode = unsafe { stat.assume_init() }.st_mode;
    if mode & libc::S_IFMT == libc::S_IFDIR || mode & 0o111 == 0 {
        return Ok(false);
    }
    let (access, effective) = (libc::X_OK.into(), libc::AT_EACCESS.into());
    call4(libc::SYS_faccessat2, [at, path, access, effective]).map(|_| true)
}

fn is_terminal_master(fd: RawFd) -> Result<bool, c_int> {
    let stat = status(fd)?;
    let is_device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
    Ok(is_device && stat.st_rdev == libc::makedev(5, 2))
}

fn status(fd: RawFd) -> Result<libc::stat, c_int> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    call(libc::SYS_fstat, [fd.into(), stat.as_mut_ptr() as c_long, 0])?;
    // SAFETY: the call succeeded, so the kernel has filled it.
    Ok(unsafe { stat.assume_init() })
}

fn send_terminal(report: RawFd, master: RawFd) -> Result<(), c_int> {
    let mut message = [KIND_TERMINAL, 0, 0, 0, 0, 0];
    let mut data = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: MESSAGE_BYTES };
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        fd: c_int,
        padding: c_int,
    }
    // SAFETY: all of it is integers, for which zero is a value.
    let mut control: Control = unsafe { std::mem::zeroed() };
    control.header.cmsg_len = std::mem::offset_of!(Control, padding);
    control.header.cmsg_level = libc::SOL_SOCKET;
    control.header.cmsg_type = libc::SCM_RIGHTS;
    control.fd = master;
    // SAFETY: all of it is integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut data;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = std::mem::size_of::<Control>();
    let arguments = [report.into(), (&raw const header) as c_long, libc::MSG_NOSIGNAL.into()];
    call(libc::SYS_sendmsg, arguments).map(drop)
}

fn tell(report: RawFd, message: &[u8; MESSAGE_BYTES]) {
    // Nobody to tell is the parent's end.
    let _ = write(report, message);
}

fn open(path: &std::ffi::CStr, flags: c_int) -> Result<RawFd, c_int> {
    let arguments = [libc::AT_FDCWD.into(), path.as_ptr() as c_long, flags.into()];
    call(libc::SYS_openat, arguments).map(|fd| fd as RawFd)
}

fn read(fd: RawFd, to: &mut [u8]) -> Result<usize, c_int> {
    let arguments = [fd.into(), to.as_mut_ptr() as c_long, to.len() as c_long];
    call(libc::SYS_read, arguments).map(|n| n as usize)
}

fn write(fd: RawFd, bytes: &[u8]) -> Result<(), c_int> {
    let arguments = [fd.into(), bytes.as_ptr() as c_long, bytes.len() as c_long];
    call(libc::SYS_write, arguments).map(drop)
}

fn ioctl(fd: RawFd, request: libc::c_ulong, argument: c_long) -> Result<c_long, c_int> {
    call(libc::SYS_ioctl, [fd.into(), request as c_long, argument])
}

fn prctl(option: c_int, value: c_long) -> Result<(), c_int> {
    call5(libc::SYS_prctl, [option.into(), value, 0, 0, 0]).map(drop)
}

fn call(number: c_long, [a, b, c]: [c_long; 3]) -> Result<c_long, c_int> {
    call5(number, [a, b, c, 0, 0])
}

fn call4(number: c_long, [a, b, c, d]: [c_long; 4]) -> Result<c_long, c_int> {
    call5(number, [a, b, c, d, 0])
}

/// One system call, by number: what libc makes of `setuid` and its like is for all threads of a
/// process, with a lock.
fn call5(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> Result<c_long, c_int> {
    // SAFETY: callers pass pointers to memory of the size that the call is told, or that ends with
    // a NUL where the call wants that; it lives for the call.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result >= 0 { Ok(result) } else { Err(errno()) }
}

fn errno() -> c_int {
    // SAFETY: this thread's own errno, always valid.
    unsafe { *libc::__errno_location() }
}

/// Checks the size and aligns nothing: `struct sock_filter` has two-byte numbers in front, and the
/// kernel copies it byte by byte.
fn filter(bytes: &[u8]) -> io::Result<libc::sock_fprog> {
    let bad = || io::Error::from(io::ErrorKind::InvalidInput);
    let instruction = std::mem::size_of::<libc::sock_filter>();
    if bytes.is_empty() || !bytes.len().is_multiple_of(instruction) {
        return Err(bad());
    }
    let len = u16::try_from(bytes.len() / instruction).map_err(|_| bad())?;
    Ok(libc::sock_fprog { len, filter: bytes.as_ptr().cast_mut().cast() })
}

/// `struct clone_args` of linux/sched.h, version 1 and 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// linux/sched.h: handlers become the default, so that none of the parent's runs in the child.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// linux/keyctl.h.
const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
/// linux/seccomp.h.
const SECCOMP_SET_MODE_FILTER: c_long = 1;
/// linux/capability.h.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Signals are numbered up to this, and a set of them has so many bytes.
const SIGNAL_MAX: c_int = 64;
const SIGNAL_SET_BYTES: c_long = 8;
