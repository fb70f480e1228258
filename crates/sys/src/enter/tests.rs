use super::*;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

const ALL: [Namespace; 5] =
    [Namespace::Mount, Namespace::Pid, Namespace::Ipc, Namespace::Uts, Namespace::Network];

/// A process in namespaces of its own, as the init of a container.
struct Init(Child, OwnedFd);

impl Init {
    fn start() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--ipc", "--uts", "--net", "--mount-proc"]);
        command.args(["--kill-child", "sh", "-c", "echo in; exec sleep 1000"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("util-linux is installed");
        let mut ready = [0; 3];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("it starts");
        // `unshare` stays outside of the pid namespace and has the init as its one child.
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let init = std::fs::read_to_string(children).expect("readable");
        let pid = rustix::process::Pid::from_raw(init.trim().parse().expect("a pid"));
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(pid.expect("not zero"), flags).expect("it lives");
        Self(child, pidfd)
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn strings(list: &[&str]) -> Vec<CString> {
    list.iter().map(|text| CString::new(*text).expect("no NUL")).collect()
}

fn entry<'a>(init: &'a Init, streams: Streams<'a>, script: &str) -> Entry<'a> {
    Entry {
        init: init.1.as_fd(),
        namespaces: &ALL,
        cgroups: &[],
        oom_score_adj: None,
        limits: &[Limit { resource: 7, soft: 33, hard: 44 }],
        keyring: None,
        streams,
        no_new_privileges: true,
        seccomp: None,
        uid: 1000,
        gid: 1001,
        groups: &[7, 8],
        capabilities: Capabilities { bounding: 0x21, permitted: 0x20, ..Capabilities::default() },
        directory: c"/tmp".into(),
        candidates: strings(&["/no/such/sh", "/tmp", "/bin/sh"]),
        arguments: strings(&["sh", "-c", script]),
        environment: strings(&["A=b", "HOME="]),
        home: Some(1),
    }
}

/// Runs an entry to its end: the last report, the terminal, and what it wrote.
fn run(entry: &Entry<'_>) -> (Vec<Report>, i32) {
    let started = entry.start().expect("there is a process");
    let mut reports = Vec::new();
    while let Some(report) = receive(&started.reports).expect("well formed") {
        reports.push(report);
    }
    let pid = rustix::process::Pid::from_raw(started.pid.cast_signed());
    let options = rustix::process::WaitOptions::empty();
    let (_, status) = rustix::process::waitpid(pid, options).expect("ours").expect("ended");
    (reports, status.exit_status().unwrap_or(-1))
}

#[test]
fn root_a_program_runs_as_it_was_told() {
    let init = Init::start();
    let (mut read, write) = std::io::pipe().expect("a pipe");
    let null = std::fs::File::open("/dev/null").expect("opens");
    let script = "pwd; id -u; id -g; id -G; echo $A $HOME; ulimit -n; cat /proc/self/status; \
                  ls /proc/self/fd; exit 5";
    let streams = Streams::Three([null.as_fd(), write.as_fd(), null.as_fd()]);
    let (reports, code) = run(&entry(&init, streams, script));
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).expect("text");
    assert!(matches!(reports[..], [Report::Ready]), "{reports:?}");
    assert_eq!(code, 5, "{text}");
    let head: Vec<&str> = text.lines().take(6).collect();
    assert_eq!(head[..4], ["/tmp", "1000", "1001", "1001 7 8"], "{text}");
    assert!(head[4].starts_with("b /"), "{text}");
    assert_eq!(head[5], "33", "{text}");
    for line in ["NoNewPrivs:\t1", "CapBnd:\t0000000000000021", "CapEff:\t0000000000000000"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // `ls` itself has the directory open as 3.
    assert!(text.ends_with("0\n1\n2\n3\n"), "{text}");
}

#[test]
fn root_a_terminal_comes_with_its_size() {
    let init = Init::start();
    let streams = Streams::Terminal { size: Some((11, 22)) };
    let started = entry(&init, streams, "stty size; tty").start().expect("there is a process");
    let Some(Report::Terminal(master)) = receive(&started.reports).expect("well formed") else {
        panic!("no terminal");
    };
    let mut text = Vec::new();
    // Ends with EIO once the last process is gone.
    let _ = std::fs::File::from(master).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("11 22") && text.contains("/dev/pts/"), "{text}");
}

#[test]
fn root_what_fails_is_named() {
    let init = Init::start();
    let null = std::fs::File::open("/dev/null").expect("opens");
    let streams = || Streams::Three([null.as_fd(), null.as_fd(), null.as_fd()]);
    let failed = |change: fn(&mut Entry<'_>)| {
        let mut entry = entry(&init, streams(), "true");
        change(&mut entry);
        let (reports, code) = run(&entry);
        assert_eq!(code, 1);
        match reports.last() {
            Some(Report::Failed(failure)) => (failure.step, failure.errno),
            other => panic!("{other:?}"),
        }
    };
    let missing = failed(|entry| entry.candidates = strings(&["/no/such"]));
    assert_eq!(missing, (Step::Lookup, libc::ENOENT));
    let directory = failed(|entry| entry.directory = c"/no/such".into());
    assert_eq!(directory, (Step::Directory, libc::ENOENT));
    let format = failed(|entry| entry.candidates = strings(&["/usr/lib/os-release"]));
    // Not even executable.
    assert_eq!(format, (Step::Lookup, libc::ENOENT));
    let filter = failed(|entry| entry.seccomp = Some(&[0xff; 8]));
    assert_eq!(filter, (Step::Seccomp, libc::EINVAL));
}

#[test]
fn homes_are_found_as_runtimes_find_them() {
    use child::home_in;
    assert_eq!(home_in(b"www:x:33:33:w:/var/www:/bin/sh", 33), Some(&b"/var/www"[..]));
    assert_eq!(home_in(b"  root:x:0:0:root:/root:/bin/sh ", 0), Some(&b"/root"[..]));
    assert_eq!(home_in(b"www:x:33:33:w:/var/www:/bin/sh", 3), None);
    assert_eq!(home_in(b"", 0), None);
    // A line that is no entry counts as root's, without a home.
    assert_eq!(home_in(b"# comment", 0), Some(&b""[..]));
    assert_eq!(home_in(b"x:y:bad:0:g:/h:s", 0), Some(&b"/h"[..]));
}
