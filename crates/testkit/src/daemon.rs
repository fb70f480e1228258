//! Daemons on private roots: gantryd and Debian's containerd.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::command::{Ctr, exit_code, signal_pid};
use crate::leaks::{self, Counters, Leaks};
use crate::programs::{built_program, sid_program, system_program};

/// A daemon on a fresh root is up well within this.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A graceful stop takes less.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonKind {
    /// Ours, from the target directory.
    Gantryd,
    /// Debian's containerd.
    Containerd,
}

/// Settings of a daemon before its start.
#[derive(Clone, Debug)]
pub struct DaemonBuilder {
    kind: DaemonKind,
    config: String,
    env: Vec<(String, String)>,
    args: Vec<String>,
    disabled: Vec<String>,
    path_first: Vec<PathBuf>,
    root: Option<PathBuf>,
    /// Another program than the kind's own.
    program: Option<PathBuf>,
}

/// A daemon with a temporary root, state and address. On drop it is stopped, and its shims,
/// containers and mounts are removed.
#[derive(Debug)]
pub struct Daemon {
    settings: DaemonBuilder,
    child: Option<Child>,
    dir: TempDir,
    namespace: String,
}

impl Daemon {
    /// Prepares gantryd.
    pub fn gantryd() -> DaemonBuilder {
        DaemonBuilder::new(DaemonKind::Gantryd)
    }

    /// Prepares Debian's containerd, without CRI.
    pub fn containerd() -> DaemonBuilder {
        DaemonBuilder::new(DaemonKind::Containerd)
    }

    /// Prepares containerd 2 of Debian sid, without CRI: for what Debian's own does not have yet.
    pub fn containerd2() -> DaemonBuilder {
        let mut builder = DaemonBuilder::new(DaemonKind::Containerd);
        builder.program = Some(sid_program("containerd"));
        builder
    }

    /// Which daemon this is.
    pub fn kind(&self) -> DaemonKind {
        self.settings.kind
    }

    /// The directory that holds all of it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's root directory.
    pub fn root(&self) -> PathBuf {
        self.settings.root_in(self.dir.path())
    }

    /// The daemon's state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Path of the gRPC socket.
    pub fn address(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }

    /// A namespace no other daemon of this machine uses: cgroups are named after namespaces.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What the daemon logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The daemon's pid.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon is running").id()
    }

    /// Sends `signal` to the daemon.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// The bundle of a task in the daemon's namespace.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.state().join("io.containerd.runtime.v2.task").join(&self.namespace).join(id)
    }

    /// The pid of the shim of a task; of our shim only, which leaves a record.
    ///
    /// # Panics
    /// When there is no record.
    pub fn shim_pid(&self, id: &str) -> u32 {
        let path = self.bundle(id).join("shim.json");
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let record: serde_json::Value = serde_json::from_slice(&text).expect("a shim's record");
        let pid = record["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.expect("a shim's record has its pid")
    }

    /// Sends `signal` to the shim of a task; see [`Self::shim_pid`].
    ///
    /// # Panics
    /// When the shim left no record.
    pub fn signal_shim(&self, id: &str, signal: Signal) {
        signal_pid(self.shim_pid(id), signal);
    }

    /// Resident memory of the daemon's own (anonymous) pages, in KiB.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn memory_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(path).expect("the daemon is running");
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let number = line.and_then(|l| l.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).expect("RssAnon is a number")
    }

    /// Debian's `ctr` against this daemon, in its namespace.
    pub fn ctr(&self) -> Ctr {
        let address = self.address();
        Ctr::new(system_program("ctr"), &address.to_string_lossy(), Some(&self.namespace))
    }

    /// The `ctr` of containerd 2, from Debian sid, against this daemon, in its namespace.
    pub fn ctr2(&self) -> Ctr {
        let address = self.address();
        Ctr::new(sid_program("ctr"), &address.to_string_lossy(), Some(&self.namespace))
    }

    /// Our `gantry` against this daemon, in its namespace.
    pub fn gantry(&self) -> Ctr {
        let address = self.address();
        Ctr::new(built_program("gantry"), &address.to_string_lossy(), Some(&self.namespace))
    }

    /// Kills the daemon with SIGKILL; containers live on.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops the daemon with SIGTERM; containers live on. Returns its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) -> i32 {
        let Some(mut child) = self.child.take() else { return 0 };
        signal_pid(child.id(), Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(status) = child.try_wait().expect("waiting for our own child") {
                return exit_code(status);
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the daemon ignores SIGTERM; its log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sets an environment variable for later starts; an empty value takes it away.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.settings.env.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.settings.env.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Whether the daemon's process lives.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Starts the daemon again as [`Daemon::start_again`] does; false when it ends instead of
    /// answering.
    ///
    /// # Panics
    /// When it does neither in time.
    pub fn try_start_again(&mut self) -> bool {
        assert!(self.child.is_none(), "the daemon is still running");
        self.child = Some(self.settings.spawn(self.dir.path()));
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if !self.is_alive() {
                self.kill9();
                return false;
            }
            if UnixStream::connect(self.address()).is_ok() {
                return true;
            }
            assert!(Instant::now() < deadline, "neither up nor ended:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What there is of each thing that may leak, right now.
    pub fn counters(&self) -> Counters {
        leaks::count(self)
    }

    /// Starts the daemon again on the same root and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the daemon is still running");
        self.child = Some(self.settings.spawn(self.dir.path()));
        self.wait_until_up();
    }

    /// Stops (SIGTERM) and starts the daemon.
    ///
    /// # Panics
    /// When it does not stop or start in time.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// What is left on the machine of this daemon's work.
    pub fn leaks(&self) -> Leaks {
        leaks::find(self)
    }

    /// Fails the test unless everything the daemon made has gone, with patience for background
    /// work. Containers and their snapshots must have been removed before.
    ///
    /// # Panics
    /// With the list of what is left.
    pub fn assert_clean(&self) {
        crate::eventually("nothing is leaked", || {
            let leaks = self.leaks();
            if leaks.is_empty() { Ok(()) } else { Err(leaks.to_string()) }
        });
    }

    /// The daemon's pid while it runs.
    pub(crate) fn running_pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn wait_until_up(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        let address = self.address();
        while UnixStream::connect(&address).is_err() {
            let ended = match &mut self.child {
                Some(child) => child.try_wait().expect("waiting for our own child"),
                None => None,
            };
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the daemon does not listen on {} (exit: {ended:?}); its log:\n{}",
                address.display(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}", tail(&self.log()));
        }
        if let Some(mut child) = self.child.take() {
            signal_pid(child.id(), Signal::TERM);
            let deadline = Instant::now() + STOP_TIMEOUT;
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        leaks::remove_all(self);
    }
}

impl DaemonBuilder {
    fn new(kind: DaemonKind) -> Self {
        Self {
            kind,
            config: String::new(),
            env: Vec::new(),
            args: Vec::new(),
            disabled: vec!["io.containerd.grpc.v1.cri".to_owned()],
            path_first: Vec::new(),
            root: None,
            program: None,
        }
    }

    /// Adds lines to the config file (after the top-level keys, so begin with a table).
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Switches a plugin off.
    #[must_use]
    pub fn disable(mut self, uri: &str) -> Self {
        self.disabled.push(uri.to_owned());
        self
    }

    /// Sets an environment variable of the daemon.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an argument of the daemon.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Puts a directory first on the daemon's PATH, where it looks for shims.
    #[must_use]
    pub fn path_first(mut self, dir: &Path) -> Self {
        self.path_first.push(dir.to_owned());
        self
    }

    /// Takes a root directory that is there already and stays when the daemon goes.
    #[must_use]
    pub fn root(mut self, dir: &Path) -> Self {
        self.root = Some(dir.to_owned());
        self
    }

    /// Starts the daemon and waits until it listens.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub fn start(self) -> Daemon {
        let dir = tempfile::Builder::new().prefix("gkd").tempdir().expect("a temporary directory");
        let child = self.spawn(dir.path());
        let mut daemon =
            Daemon { settings: self, child: Some(child), dir, namespace: fresh_namespace() };
        daemon.wait_until_up();
        daemon
    }

    /// Starts the daemon, which must end by itself with an error; returns its log.
    ///
    /// # Panics
    /// When it starts all the same.
    pub fn fails_to_start(self) -> String {
        let dir = tempfile::Builder::new().prefix("gkd").tempdir().expect("a temporary directory");
        let mut child = self.spawn(dir.path());
        let deadline = Instant::now() + START_TIMEOUT;
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting for our own child") {
                break status;
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the daemon does not fail");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(!status.success(), "the daemon ended well");
        fs::read_to_string(dir.path().join("log")).unwrap_or_default()
    }

    fn spawn(&self, dir: &Path) -> Child {
        let config = dir.join("config.toml");
        fs::write(&config, self.config_text(dir)).expect("writing the daemon's config");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .expect("opening the daemon's log");
        let program = match self.kind {
            DaemonKind::Gantryd => built_program("gantryd"),
            DaemonKind::Containerd => system_program("containerd"),
        };
        let program = self.program.clone().unwrap_or(program);
        let mut path: Vec<String> =
            self.path_first.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        path.push(std::env::var("PATH").unwrap_or_default());
        path.push("/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        Command::new(&program)
            .arg("--config")
            .arg(&config)
            .args(&self.args)
            .env("PATH", path.join(":"))
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicating the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("starting {}: {e}", program.display()))
    }

    fn root_in(&self, dir: &Path) -> PathBuf {
        self.root.clone().unwrap_or_else(|| dir.join("root"))
    }

    fn config_text(&self, dir: &Path) -> String {
        let root = self.root_in(dir);
        let (root, dir, disabled) = (root.display(), dir.display(), &self.disabled);
        format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{dir}/state\"\n\
             disabled_plugins = {disabled:?}\n\
             [grpc]\n  address = \"{dir}/d.sock\"\n[debug]\n  level = \"debug\"\n{}",
            self.config
        )
    }
}

/// A namespace that no other test, also of another process, uses.
fn fresh_namespace() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("gk{}-{n}", std::process::id())
}

/// The end of a log, enough to see why a test failed.
fn tail(log: &str) -> String {
    const LINES_MAX: usize = 80;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")
}
