//! Running the command lines: output, exit code, deadline.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::patience::eventually;
use crate::pty::Pty;

/// Longest time a command may take before it is killed and the test fails.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `ctr` or `gantry` against one daemon and namespace.
#[derive(Clone, Debug)]
pub struct Ctr {
    program: PathBuf,
    globals: Vec<String>,
    namespace: Option<String>,
    timeout: Duration,
    env: Vec<(String, String)>,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; 128 + signal for a command that was killed.
    pub code: i32,
}

/// A command that is still running; killed on drop.
#[derive(Debug)]
pub struct Background {
    child: Child,
    shown: String,
    dir: tempfile::TempDir,
    timeout: Duration,
}

impl Ctr {
    /// Runs `program` with `--address ADDRESS`, in `namespace` unless that is None.
    pub fn new(program: PathBuf, address: &str, namespace: Option<&str>) -> Self {
        Self {
            program,
            globals: vec!["--address".to_owned(), address.to_owned()],
            namespace: namespace.map(str::to_owned),
            timeout: COMMAND_TIMEOUT,
            env: Vec::new(),
        }
    }

    /// The same runner in another namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// The same runner with another deadline per command.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same runner with an environment variable more.
    #[must_use]
    pub fn with_env(&self, name: &str, value: &str) -> Self {
        let mut runner = self.clone();
        runner.env.push((name.to_owned(), value.to_owned()));
        runner
    }

    /// The same runner with a flag more before the command.
    #[must_use]
    pub fn with_global(&self, flag: &str) -> Self {
        let mut runner = self.clone();
        runner.globals.push(flag.to_owned());
        runner
    }

    /// The namespace commands run in.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// File name of the program, `ctr` or `gantry`.
    pub fn program_name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it can't be started or does not end in time.
    pub fn run<I>(&self, args: I) -> Output
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.spawn(args).wait()
    }

    /// Runs a command with `input` as its standard input.
    ///
    /// # Panics
    /// When it can't be started or does not end in time.
    pub fn run_with_input<I>(&self, args: I, input: &[u8]) -> Output
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let (background, mut stdin) = self.spawn_with_input(args);
        // A command may rightly end without reading its input.
        let _ = stdin.write_all(input);
        drop(stdin);
        background.wait()
    }

    /// Runs a command that must succeed; returns its standard output.
    ///
    /// # Panics
    /// When it fails, with its output.
    pub fn ok<I>(&self, args: I) -> String
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let background = self.spawn(args);
        let shown = background.shown.clone();
        let output = background.wait();
        assert_eq!(
            output.code, 0,
            "{shown}\n--- stdout\n{}--- stderr\n{}",
            output.stdout, output.stderr
        );
        output.stdout
    }

    /// Runs a command that must fail; returns its standard error.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn fail<I>(&self, args: I) -> String
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let background = self.spawn(args);
        let shown = background.shown.clone();
        let output = background.wait();
        assert_ne!(output.code, 0, "{shown} should fail\n--- stdout\n{}", output.stdout);
        output.stderr
    }

    /// Starts a command and returns at once.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn<I>(&self, args: I) -> Background
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.launch(args, Stdio::null())
    }

    /// Starts a command and returns at once, with its standard input: the command sees the end of
    /// it when that is dropped.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn_with_input<I>(&self, args: I) -> (Background, ChildStdin)
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let mut background = self.launch(args, Stdio::piped());
        let stdin = background.child.stdin.take().expect("stdin is piped");
        (background, stdin)
    }

    /// Starts a command on a new terminal, as its controlling one.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn_on_terminal<I>(&self, args: I) -> Pty
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let mut command = Command::new(crate::system_program("setsid"));
        command.arg("--ctty").arg("--wait").arg(&self.program).args(self.all_args(&args));
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        Pty::spawn(command, self.timeout)
    }

    fn launch<I>(&self, args: I, stdin: Stdio) -> Background
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let all = self.all_args(&args);
        let shown = format!(
            "{} {}",
            self.program.display(),
            all.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
        );
        // Files, not pipes: a detached container may keep them open longer than the command runs.
        let dir = tempfile::Builder::new().prefix("gkc").tempdir().expect("a temporary directory");
        let file = |name: &str| File::create(dir.path().join(name)).expect("an output file");
        let child = Command::new(&self.program)
            .args(&all)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(stdin)
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap_or_else(|e| panic!("starting {shown}: {e}"));
        Background { child, shown, dir, timeout: self.timeout }
    }

    fn all_args(&self, args: &[OsString]) -> Vec<OsString> {
        let mut all: Vec<OsString> = self.globals.iter().map(Into::into).collect();
        if let Some(namespace) = &self.namespace {
            all.extend(["--namespace".into(), namespace.into()]);
        }
        all.extend_from_slice(args);
        all
    }
}

impl Output {
    /// Standard output and error together, for looking for words.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Background {
    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Pid of the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the command is still running.
    pub fn is_running(&self) -> bool {
        // Without reaping it: that is for `wait`.
        std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .is_ok_and(|s| s.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
    }

    /// Waits until standard output contains `text`.
    ///
    /// # Panics
    /// When it does not within the patience of [`eventually`].
    pub fn wait_for_output(&self, text: &str) {
        eventually(&format!("{} prints {text:?}", self.shown), || {
            let stdout = self.stdout();
            if stdout.contains(text) {
                return Ok(());
            }
            Err(format!("stdout {stdout:?}, stderr {:?}", self.stderr()))
        });
    }

    /// Waits for the command's end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(mut self) -> Output {
        let deadline = Instant::now() + self.timeout;
        loop {
            let status = self.child.try_wait().expect("waiting for our own child");
            if let Some(status) = status {
                return Output {
                    stdout: self.stdout(),
                    stderr: self.stderr(),
                    code: exit_code(status),
                };
            }
            assert!(
                Instant::now() < deadline,
                "{} did not end within {:?}\n--- stdout\n{}--- stderr\n{}",
                self.shown,
                self.timeout,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the command (SIGKILL) and waits for it.
    pub fn kill(mut self) -> Output {
        let _ = self.child.kill();
        let status = self.child.wait().expect("waiting for our own child");
        Output { stdout: self.stdout(), stderr: self.stderr(), code: exit_code(status) }
    }

    /// Sends `signal` to the command.
    pub fn signal(&self, signal: rustix::process::Signal) {
        signal_pid(self.child.id(), signal);
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The exit code as a shell tells it.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal_pid(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
