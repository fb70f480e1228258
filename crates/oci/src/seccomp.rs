//! The optional seccomp profile.

use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde_json::{Value, json};

use crate::builder::SpecBuilder;

/// What a forbidden call returns: EPERM, as if a privilege were missing.
const FORBIDDEN_ERRNO: u32 = 1;

/// System calls that work on what the process owns, by area. Everything that loads code into the
/// kernel, changes the machine's clock or mounts, traces others or takes keys is left out.
const ALLOWED: &[&str] = &[
    // Files and directories.
    "access chdir chmod chown chown32 close close_range creat dup dup2 dup3 faccessat faccessat2 \
     fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat \
     fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
     ftruncate64 futimesat getcwd getdents getdents64 lchown lchown32 link linkat lseek _llseek \
     lstat lstat64 mkdir mkdirat mknod mknodat newfstatat open openat openat2 readlink readlinkat \
     rename renameat renameat2 rmdir stat stat64 statfs statfs64 statx symlink symlinkat sync \
     sync_file_range syncfs truncate truncate64 umask unlink unlinkat utime utimensat \
     utimensat_time64 utimes cachestat",
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr \
     lremovexattr lsetxattr removexattr setxattr getxattrat setxattrat listxattrat removexattrat",
    // Reading, writing, waiting.
    "copy_file_range epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
     epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init \
     inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
     io_pgetevents_time64 io_setup io_submit ioctl memfd_create memfd_secret _newselect pipe \
     pipe2 poll ppoll ppoll_time64 pread64 preadv preadv2 pselect6 pselect6_time64 pwrite64 \
     pwritev pwritev2 read readahead readv select sendfile sendfile64 splice tee vmsplice write \
     writev",
    // Memory.
    "brk get_mempolicy madvise mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal \
     msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise \
     process_mrelease remap_file_pages map_shadow_stack membarrier",
    // Processes, threads, ids.
    "alarm arch_prctl capget capset clone3 execve execveat exit exit_group fork futex futex_requeue \
     futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid \
     getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid \
     getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid \
     gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset \
     landlock_restrict_self modify_ldt nanosleep pause pidfd_open pidfd_send_signal prctl \
     prlimit64 restart_syscall rseq sched_get_priority_max sched_get_priority_min \
     sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
     sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address \
     setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid \
     setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
     setreuid32 setrlimit setsid setuid setuid32 sysinfo tgkill times tkill ugetrlimit uname \
     vfork wait4 waitid waitpid",
    // Signals and time.
    "clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
     clock_nanosleep_time64 getitimer gettimeofday rt_sigaction rt_sigpending rt_sigprocmask \
     rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
     rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4 sigpending sigprocmask sigreturn \
     time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
     timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
     timerfd_settime64",
    // Sockets and System V and POSIX IPC.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
     recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall \
     socketpair ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
     mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop \
     semtimedop semtimedop_time64 shmat shmctl shmdt shmget getrandom",
];

/// Calls that a capability brings along.
const WITH_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::SysChroot, "chroot"),
    (Capability::DacReadSearch, "open_by_handle_at name_to_handle_at"),
    (Capability::SysPtrace, "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd"),
    (
        Capability::SysTime,
        "settimeofday stime clock_settime clock_settime64 adjtimex \
     clock_adjtime clock_adjtime64",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysModule, "delete_module init_module finit_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysNice, "mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
    (
        Capability::SysAdmin,
        "bpf clone fanotify_init fsconfig fsmount fsopen fspick mount \
     mount_setattr move_mount open_tree perf_event_open pivot_root quotactl quotactl_fd \
     setdomainname sethostname setns swapoff swapon syslog umount umount2 unshare",
    ),
];

/// Every namespace flag of clone(2).
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

/// AF_VSOCK: the one socket family that leaves the network namespace.
const AF_VSOCK: u64 = 40;

/// An allow list for a container with `capabilities`.
pub fn default_profile(capabilities: &[Capability]) -> LinuxSeccomp {
    let mut rules: Vec<Value> = ALLOWED.iter().map(|names| allow(names)).collect();
    for (capability, names) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            rules.push(allow(names));
        }
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        let flags = if cfg!(target_arch = "s390x") { 1 } else { 0 };
        let mut rule = allow("clone");
        rule["args"] = json!([{
            "index": flags, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ",
        }]);
        rules.push(rule);
    }
    let mut socket = allow("socket");
    socket["args"] = json!([{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}]);
    rules.push(socket);
    // Querying the execution domain, and the two that old programs set.
    for persona in [0x0_u64, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff] {
        let mut rule = allow("personality");
        rule["args"] = json!([{"index": 0, "value": persona, "op": "SCMP_CMP_EQ"}]);
        rules.push(rule);
    }
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": FORBIDDEN_ERRNO,
        "architectures": architectures(),
        "syscalls": rules,
    });
    serde_json::from_value(profile).expect("the profile fits the types")
}

impl SpecBuilder {
    /// Filters system calls by [`default_profile`] for the capabilities there are now.
    #[must_use]
    pub fn default_seccomp(mut self) -> Self {
        let held = self.process().capabilities().as_ref().and_then(|c| c.bounding().clone());
        let held: Vec<Capability> = held.into_iter().flatten().collect();
        self.seccomp(default_profile(&held))
    }

    /// Filters system calls by `profile`.
    #[must_use]
    pub fn seccomp(mut self, profile: LinuxSeccomp) -> Self {
        self.linux().set_seccomp(Some(profile));
        self
    }
}

fn allow(names: &str) -> Value {
    let names: Vec<&str> = names.split_whitespace().collect();
    json!({"names": names, "action": "SCMP_ACT_ALLOW"})
}

/// This machine's architecture and those it runs besides.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        "s390x" => &["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
        "powerpc64" => &["SCMP_ARCH_PPC64LE"],
        _ => &[],
    }
}
