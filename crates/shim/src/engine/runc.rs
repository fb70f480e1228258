//! An OCI runtime by exec: runc, crun, youki or anything with their command line.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gantry_errdefs::{Error, Result, ResultExt as _};

use super::{Checkpoint, ChildStdio, Create, Engine, Exec, Spawned, direct, join, log};
use crate::fd;
use crate::reaper::{Exit, Reaper};

/// Create and exec run hooks of the user's; four minutes is what a kubelet gives the whole call.
const CREATE_DEADLINE: Duration = Duration::from_secs(240);
/// Everything else is the runtime alone.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// A checkpoint writes the container's memory to disk.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(600);
/// How often the runtime is asked to freeze. A cgroup of version 1 whose processes fork meanwhile may
/// stay half frozen; runc thaws it and gives up after a fifth of a second.
const FREEZE_TRIES: u32 = 5;
/// How it says so.
const NOT_FROZEN: &str = "unable to freeze";
/// What a runtime prints that is worth keeping.
const PRINTED_BYTES_MAX: u64 = 64 * 1024;

/// Flags of both checkpoint and restore.
const TCP_FLAG: &str = "--tcp-established";
const UNIX_FLAG: &str = "--ext-unix-sk";
const TERMINAL_FLAG: &str = "--shell-job";
const LOCKS_FLAG: &str = "--file-locks";

/// How to call the runtime; from the task's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuncConfig {
    /// The program: a name on PATH or a path.
    pub binary: String,
    /// `--root`: where the runtime keeps its records, namespace included.
    pub root: PathBuf,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// `--log`, in the bundle.
    pub log: PathBuf,
    /// The criu that the runtime is to use; empty for the one on PATH.
    pub criu: PathBuf,
}

/// See the module's text.
#[derive(Debug)]
pub struct Runc {
    config: RuncConfig,
    reaper: Arc<Reaper>,
}

impl Runc {
    /// An engine that calls the program of `config`.
    pub fn new(config: RuncConfig, reaper: Arc<Reaper>) -> Self {
        Self { config, reaper }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.config.binary);
        command.arg("--root").arg(&self.config.root);
        command.arg("--log").arg(&self.config.log).args(["--log-format", "json"]);
        if self.config.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb);
        command
    }

    /// Has the runtime find criu, and criu read more options. Runtimes look for it on PATH; the
    /// flag that older ones had is gone.
    fn ready_criu(&self, command: &mut Command, config: Option<&Path>) {
        if let Some(directory) = self.config.criu.parent() {
            let mut path = directory.as_os_str().to_owned();
            if let Some(rest) = std::env::var_os("PATH") {
                path.push(":");
                path.push(rest);
            }
            command.env("PATH", path);
        }
        if let Some(config) = config {
            command.env(crate::checkpoint::CONFIG_ENV, config);
        }
    }

    /// Runs a call whose stdio is not a container's, keeping what it prints.
    async fn call(&self, verb: &str, mut command: Command, deadline: Duration) -> Result<Vec<u8>> {
        let printed = fd::memory("runtime-output")?;
        command.stdout(Stdio::from(fd::duplicate(&printed)?));
        command.stderr(Stdio::from(fd::duplicate(&printed)?));
        let mark = log::mark(&self.config.log);
        let exit = self.run(verb, command, deadline).await?;
        let text = fd::read_from_start(&printed, PRINTED_BYTES_MAX)?;
        if exit.status == 0 { Ok(text) } else { Err(self.failure(verb, exit, mark, &text)) }
    }

    /// Runs the runtime to its end, at most `deadline` long.
    async fn run(&self, verb: &str, mut command: Command, deadline: Duration) -> Result<Exit> {
        let (pid, exited) = self.reaper.spawn(&mut command).map_err(|err| {
            let binary = &self.config.binary;
            Error::unknown(format!("OCI runtime {verb} failed: unable to run {binary}: {err}"))
        })?;
        drop(command);
        match tokio::time::timeout(deadline, exited).await {
            Ok(Ok(exit)) => Ok(exit),
            Ok(Err(_)) => Err(Error::internal(format!("OCI runtime {verb}: its exit got lost"))),
            Err(_) => {
                fd::kill(pid);
                let seconds = deadline.as_secs();
                Err(Error::deadline_exceeded(format!(
                    "OCI runtime {verb} failed: no answer in {seconds} s, killed"
                )))
            }
        }
    }

    fn failure(&self, verb: &str, exit: Exit, mark: u64, printed: &[u8]) -> Error {
        let why = log::last_error(&self.config.log, mark).unwrap_or_else(|| {
            let text = log::printed(printed);
            let end = if exit.status < 128 {
                format!("exit status {}", exit.status)
            } else {
                format!("signal {}", exit.status - 128)
            };
            if text.is_empty() { end } else { format!("{end}: {text}") }
        });
        Error::unknown(format!("OCI runtime {verb} failed: {why}"))
    }

    /// Runs a call that leaves a process of the container behind and its pid in `pid_file`.
    async fn launch(&self, verb: &str, command: Command, pid_file: &Path) -> Result<Spawned> {
        let window = self.reaper.adoption();
        let mark = log::mark(&self.config.log);
        let exit = self.run(verb, command, CREATE_DEADLINE).await?;
        if exit.status != 0 {
            return Err(self.failure(verb, exit, mark, &[]));
        }
        let text = std::fs::read_to_string(pid_file).context(|| pid_file.display().to_string())?;
        let pid: u32 = text.trim().parse().map_err(|_| {
            Error::internal(format!("OCI runtime {verb}: {}: not a pid", pid_file.display()))
        })?;
        let (exited, pidfd) = window.adopt(pid);
        Ok(Spawned { pid, exited, pidfd })
    }

    async fn simple(&self, verb: &str, id: &str) -> Result<()> {
        let mut command = self.command(verb);
        command.arg(id).stdin(Stdio::null());
        self.call(verb, command, CALL_DEADLINE).await.map(drop)
    }
}

/// The program's stdio: the container's own, or nothing when a terminal will be.
fn stdio(command: &mut Command, stdio: ChildStdio, console: Option<&Path>) {
    if let Some(socket) = console {
        command.arg("--console-socket").arg(socket);
    }
    command.stdin(Stdio::from(stdio.stdin));
    command.stdout(Stdio::from(stdio.stdout)).stderr(Stdio::from(stdio.stderr));
}

#[async_trait]
impl Engine for Runc {
    async fn create(&self, call: Create<'_>) -> Result<Spawned> {
        let verb = if call.restore.is_some() { "restore" } else { "create" };
        let pid_file = call.bundle.join("init.pid");
        let mut command = self.command(verb);
        command.arg("--bundle").arg(call.bundle).arg("--pid-file").arg(&pid_file);
        if let Some(restore) = &call.restore {
            command.args(["--detach", "--manage-cgroups-mode", "soft"]);
            command.arg("--image-path").arg(&restore.image);
            command.arg("--work-path").arg(&restore.work);
            self.ready_criu(&mut command, restore.config.as_deref());
            let flags = [
                (restore.open_tcp, TCP_FLAG),
                (restore.external_unix_sockets, UNIX_FLAG),
                (restore.terminal, TERMINAL_FLAG),
                (restore.file_locks, LOCKS_FLAG),
            ];
            criu_flags(&mut command, &flags, &restore.empty_namespaces);
        }
        if call.no_pivot {
            command.arg("--no-pivot");
        }
        if call.no_new_keyring && call.restore.is_none() {
            command.arg("--no-new-keyring");
        }
        stdio(&mut command, call.stdio, call.console);
        command.arg(call.id);
        let spawned = self.launch(verb, command, &pid_file).await?;
        if call.restore.is_none() {
            join::keep_filter(&self.config, call.id, call.bundle, spawned.pid);
        }
        Ok(spawned)
    }

    async fn start(&self, id: &str) -> Result<()> {
        if direct::start(&self.config, id).await? {
            return Ok(());
        }
        self.simple("start", id).await
    }

    async fn exec(&self, call: Exec<'_>) -> Result<Spawned> {
        if let Some(spawned) = join::exec(&self.config, &self.reaper, &call).await? {
            return Ok(spawned);
        }
        let process = call.bundle.join(format!(".{}.process.json", call.exec_id));
        let pid_file = call.bundle.join(format!("{}.pid", call.exec_id));
        std::fs::write(&process, call.process).context(|| process.display().to_string())?;
        let mut command = self.command("exec");
        command.arg("--process").arg(&process).arg("--pid-file").arg(&pid_file).arg("--detach");
        stdio(&mut command, call.stdio, call.console);
        command.arg(call.id);
        let spawned = self.launch("exec", command, &pid_file).await;
        for file in [&process, &pid_file] {
            // Missing when the runtime failed early; nothing else reads them.
            let _ = std::fs::remove_file(file);
        }
        spawned
    }

    async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<()> {
        let mut command = self.command("kill");
        if all {
            command.arg("--all");
        }
        command.arg(id).arg(signal.to_string()).stdin(Stdio::null());
        match self.call("kill", command, CALL_DEADLINE).await {
            Err(err) if is_gone(err.message()) => Err(Error::not_found("process already finished")),
            other => other.map(drop),
        }
    }

    async fn delete(&self, id: &str, force: bool) -> Result<()> {
        if !force && direct::delete(&self.config, id) {
            return Ok(());
        }
        let mut command = self.command("delete");
        if force {
            command.arg("--force");
        }
        command.arg(id).stdin(Stdio::null());
        match self.call("delete", command, CALL_DEADLINE).await {
            Err(err) if err.message().contains("does not exist") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn pause(&self, id: &str) -> Result<()> {
        for _ in 1..FREEZE_TRIES {
            match self.simple("pause", id).await {
                Err(err) if err.message().contains(NOT_FROZEN) => {}
                done => return done,
            }
        }
        self.simple("pause", id).await
    }

    async fn resume(&self, id: &str) -> Result<()> {
        self.simple("resume", id).await
    }

    async fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        let mut command = self.command("update");
        let input = memory_with(resources)?;
        command.args(["--resources", "-", id]).stdin(Stdio::from(input));
        self.call("update", command, CALL_DEADLINE).await.map(drop)
    }

    async fn checkpoint(&self, id: &str, bundle: &Path, call: &Checkpoint) -> Result<()> {
        let work =
            if call.work.is_empty() { bundle.join("criu-work") } else { PathBuf::from(&call.work) };
        std::fs::create_dir_all(&work).context(|| work.display().to_string())?;
        let mut command = self.command("checkpoint");
        command.arg("--image-path").arg(&call.image).arg("--work-path").arg(&work);
        self.ready_criu(&mut command, call.config.as_deref());
        let flags = [
            (!call.exit, "--leave-running"),
            (call.open_tcp, TCP_FLAG),
            (call.external_unix_sockets, UNIX_FLAG),
            (call.terminal, TERMINAL_FLAG),
            (call.file_locks, LOCKS_FLAG),
        ];
        criu_flags(&mut command, &flags, &call.empty_namespaces);
        if !call.cgroups_mode.is_empty() {
            command.arg("--manage-cgroups-mode").arg(&call.cgroups_mode);
        }
        command.arg(id).stdin(Stdio::null());
        let done = self.call("checkpoint", command, CHECKPOINT_DEADLINE).await;
        if done.is_err() {
            // For whoever looks into the failure; without a log there is nothing to keep.
            let _ = std::fs::copy(work.join("dump.log"), bundle.join("criu-dump.log"));
        }
        done.map(drop)
    }

    async fn pids(&self, id: &str) -> Result<Vec<u32>> {
        let mut command = self.command("ps");
        command.args(["--format", "json", id]).stdin(Stdio::null());
        let text = self.call("ps", command, CALL_DEADLINE).await?;
        serde_json::from_slice(&text)
            .map_err(|err| Error::unknown(format!("OCI runtime ps: unexpected output: {err}")))
    }
}

fn criu_flags(command: &mut Command, flags: &[(bool, &str)], empty_namespaces: &[String]) {
    command.args(flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag));
    for namespace in empty_namespaces {
        command.arg("--empty-ns").arg(namespace);
    }
}

/// Whether a failed kill says that nobody is there.
fn is_gone(text: &str) -> bool {
    ["process already finished", "no such process", "container not running", "does not exist"]
        .iter()
        .any(|words| text.contains(words))
}

fn memory_with(bytes: &[u8]) -> Result<OwnedFd> {
    let file = fd::memory("runtime-input")?;
    fd::write_all(file.as_fd(), bytes)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
        .map_err(|err| Error::io("runtime input", err.into()))?;
    Ok(file)
}
