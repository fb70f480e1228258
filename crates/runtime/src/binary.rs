//! Running the verbs of a shim program: `start`, `delete`, `-v`, `-info`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_api::containerd::runtime::bootstrap::v1::{BootstrapParams, Extension, LogLevel};
use gantry_api::containerd::task::v2::DeleteResponse;
use gantry_core::{Any, Namespace};
use gantry_errdefs::{Error, Result, ResultExt};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::bootstrap::{ANSWER_BYTES_MAX, Bootstrap};
use crate::bundle::Bundle;
use crate::config::Config;
use crate::launch::{self, Launched};
use crate::{Exit, convert};

/// How long output may follow the end of the program, from a child that kept its pipes.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// The first release that takes `BootstrapParams` on stdin; earlier ones take options there, or
/// nothing.
const BOOTSTRAP_SINCE: (u32, u32) = (2, 3);

/// What programs said of their version, so that `-v` runs once per program and not once per
/// container.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    known: Mutex<HashMap<PathBuf, Known>>,
}

/// A std mutex guards it: held for a map access, never across an await.
#[derive(Clone, Debug)]
struct Known {
    /// A program that was replaced is asked again.
    modified: SystemTime,
    says: Says,
    /// The program on a read-only mount of its own, where that is of use and can be had.
    protected: Option<Arc<OwnedFd>>,
}

/// What a program says of how it wants to be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Says {
    /// Parameters on standard input.
    bootstrap: bool,
    /// Its listening socket there, and no verb.
    socket: bool,
}

/// Programs remembered; more than this many shims are not installed anywhere.
const KNOWN_MAX: usize = 64;

/// One shim program at work on one task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binary<'a> {
    pub(crate) config: &'a Config,
    pub(crate) program: &'a Path,
    pub(crate) namespace: &'a Namespace,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Bundle,
}

/// How a program ended and what it printed.
#[derive(Debug)]
struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Binary<'_> {
    /// Starts a shim: by one exec where it is `alone` (shares its process with no other
    /// container, and has no cgroup of its own to join) and its program takes its socket, else by
    /// the `start` verb, which tells where it listens.
    ///
    /// # Errors
    /// Unknown with the output of the program when it failed, DeadlineExceeded when it took too
    /// long, and the errors of [`Bootstrap::parse`].
    pub(crate) async fn start(
        &self,
        versions: &Versions,
        options: Option<&Any>,
        alone: bool,
    ) -> Result<Launched> {
        let known = versions.of(self.config, self.program).await;
        if alone
            && known.says.socket
            && let Some(launched) = launch::launch(self, known.protected.as_deref())?
        {
            return Ok(launched);
        }
        let stdin = if known.says.bootstrap {
            self.params(options).encode_to_vec()
        } else {
            options.map(|any| convert::to_wire(any).encode_to_vec()).unwrap_or_default()
        };
        let mut command = self.command();
        command.arg("start");
        let deadline = self.config.deadlines.start_shim;
        let output = run(command, &stdin, deadline)
            .await
            .context(|| format!("failed to start shim: {} start", self.program.display()))?;
        if !output.status.success() {
            return Err(Error::unknown(format!(
                "failed to start shim: start failed: {}{}",
                output.text(),
                output.status_text()
            )));
        }
        let bootstrap = Bootstrap::parse(&output.stdout).context(|| "failed to start shim")?;
        Ok(Launched { bootstrap, process: None })
    }

    /// Lets the program clean up after a shim that is gone, and says how the task ended.
    ///
    /// # Errors
    /// Unknown with the output of the program, or DeadlineExceeded.
    pub(crate) async fn delete(&self) -> Result<Exit> {
        let mut command = self.command();
        command.arg("-bundle").arg(&self.bundle.path).arg("delete");
        let output = run(command, &[], self.config.deadlines.cleanup)
            .await
            .context(|| format!("{} delete", self.program.display()))?;
        if !output.status.success() {
            return Err(Error::unknown(format!(
                "{} delete: {}{}",
                self.program.display(),
                output.text(),
                output.status_text()
            )));
        }
        let answer = DeleteResponse::decode(output.stdout.as_slice()).map_err(|e| {
            Error::unknown(format!("{} delete: answer: {e}", self.program.display())).with_source(e)
        })?;
        Ok(Exit {
            pid: answer.pid,
            status: answer.exit_status,
            exited_at: answer.exited_at.and_then(convert::to_system_time),
        })
    }

    fn params(&self, options: Option<&Any>) -> BootstrapParams {
        let level = if self.config.debug { LogLevel::Debug } else { LogLevel::Info };
        BootstrapParams {
            instance_id: self.id.to_owned(),
            namespace: self.namespace.to_string(),
            log_level: level.into(),
            containerd_version: self.config.version.clone(),
            containerd_ttrpc_address: self.config.ttrpc_address.clone(),
            containerd_grpc_address: self.config.grpc_address.clone(),
            containerd_binary: self.config.publish_binary.display().to_string(),
            extensions: options
                .map(|any| Extension { value: Some(convert::to_wire(any)) })
                .into_iter()
                .collect(),
            socket_dir: Some(self.config.socket_dir.display().to_string()),
        }
    }

    /// The program with the flags and variables that every verb gets.
    fn command(&self) -> Command {
        self.command_of(self.program)
    }

    /// As above, with the program found at another path.
    pub(crate) fn command_of(&self, program: &Path) -> Command {
        let config = self.config;
        let mut command = Command::new(program);
        command
            .arg("-namespace")
            .arg(self.namespace.as_str())
            .arg("-address")
            .arg(&config.grpc_address)
            .arg("-publish-binary")
            .arg(&config.publish_binary)
            .arg("-id")
            .arg(self.id);
        if config.debug {
            command.arg("-debug");
        }
        command
            .current_dir(&self.bundle.path)
            .env("GOMAXPROCS", "2")
            .env("MAX_SHIM_VERSION", "2")
            .env("TTRPC_ADDRESS", &config.ttrpc_address)
            .env("GRPC_ADDRESS", &config.grpc_address)
            .env("NAMESPACE", self.namespace.as_str())
            .envs(config.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

/// Runs `<shim> -info` with `options` on stdin and returns what it printed.
///
/// # Errors
/// Unknown with the output of the program when it failed, or DeadlineExceeded.
pub(crate) async fn info(
    program: &Path,
    options: Option<&Any>,
    deadline: Duration,
) -> Result<Vec<u8>> {
    let stdin = options.map(|any| convert::to_wire(any).encode_to_vec()).unwrap_or_default();
    let mut command = Command::new(program);
    command.arg("-info");
    let output =
        run(command, &stdin, deadline).await.context(|| format!("{} -info", program.display()))?;
    if !output.status.success() {
        return Err(Error::unknown(format!(
            "{} -info: {}{}",
            program.display(),
            output.text(),
            output.status_text()
        )));
    }
    Ok(output.stdout)
}

impl Versions {
    /// How `program` wants to be started. One that does not say is taken for an old one, as those
    /// ignore stdin or read options from it.
    async fn of(&self, config: &Config, program: &Path) -> Known {
        let modified =
            program.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some(known) = self.known().get(program).filter(|k| k.modified == modified) {
            return known.clone();
        }
        let mut command = Command::new(program);
        command.arg("-v").envs(config.env.iter().map(|(k, v)| (k, v)));
        let says = match run(command, &[], config.deadlines.info).await {
            Ok(output) => says(&String::from_utf8_lossy(&output.stdout)),
            Err(err) => {
                tracing::warn!(program = %program.display(), %err, "version of a shim");
                Says::default()
            }
        };
        let protected = says.socket.then(|| gantry_sys::program::protect(program));
        let protected = protected.and_then(|protected| match protected {
            Ok(protected) => Some(Arc::new(protected)),
            Err(err) => {
                tracing::info!(%err, "shims are not protected: their execs are the runtime's");
                None
            }
        });
        let found = Known { modified, says, protected };
        let mut known = self.known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(program.to_owned(), found.clone());
        found
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the output of `-v`: lines of `key: value`, of which one is the version. Ours counts its
/// own releases, and says in lines of its own how it wants to be started.
fn says(text: &str) -> Says {
    let (mut version, mut bootstrap, mut socket) = (None, None, false);
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim().to_ascii_lowercase().as_str() {
            "bootstrap" => bootstrap = Some(value.trim() == "protobuf"),
            "socket" => socket = value.trim() == "stdin",
            "version" => version = parse_version(value.trim()),
            _ => {}
        }
    }
    let bootstrap = bootstrap.unwrap_or_else(|| version.is_some_and(|v| v >= BOOTSTRAP_SINCE));
    Says { bootstrap, socket }
}

/// `v2.3.4` or `1.6.20~ds1` => major and minor.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Output {
    fn text(&self) -> String {
        let both = [&self.stderr, &self.stdout].map(|b| String::from_utf8_lossy(b).into_owned());
        both.join("").trim().to_owned()
    }

    fn status_text(&self) -> String {
        let text = match self.status.code() {
            Some(code) => format!("exit status {code}"),
            None => self.status.to_string(),
        };
        if self.stdout.is_empty() && self.stderr.is_empty() { text } else { format!(": {text}") }
    }
}

/// Runs `command` in a process group of its own until `deadline`, after which it is killed.
async fn run(mut command: Command, stdin: &[u8], deadline: Duration) -> Result<Output> {
    command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| Error::unknown(e.to_string()).with_source(e))?;
    let input = child.stdin.take();
    let stdout = Capture::start(child.stdout.take());
    let stderr = Capture::start(child.stderr.take());
    let work = async {
        if let Some(mut input) = input {
            // A program that does not read its input, as old shims, has closed it by now.
            let _ = input.write_all(stdin).await;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(deadline, work).await;
    let (stdout, stderr) = tokio::join!(stdout.finish(), stderr.finish());
    match status {
        Ok(Ok(status)) => Ok(Output { status, stdout, stderr }),
        Ok(Err(err)) => Err(Error::io("wait", err)),
        Err(_) => Err(Error::deadline_exceeded(format!("still running after {deadline:?}"))),
    }
}

/// What comes out of a pipe, also when a child of the program keeps it open.
struct Capture {
    /// A std mutex: held to append or take bytes, never across an await.
    bytes: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl Capture {
    fn start(pipe: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reading = tokio::spawn({
            let bytes = Arc::clone(&bytes);
            async move {
                let Some(mut pipe) = pipe else { return };
                let mut buffer = [0; 4096];
                loop {
                    let read = match pipe.read(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(read) => read,
                    };
                    let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                    // What is beyond the limit is read, so that the program goes on, and lost.
                    let room = ANSWER_BYTES_MAX.saturating_sub(bytes.len());
                    bytes.extend_from_slice(&buffer[..read.min(room)]);
                }
            }
        });
        Self { bytes, reading }
    }

    async fn finish(mut self) -> Vec<u8> {
        if tokio::time::timeout(OUTPUT_GRACE, &mut self.reading).await.is_err() {
            self.reading.abort();
        }
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_decide_the_form_of_stdin() {
        let debian = "containerd-shim-runc-v2:\n  Version:  1.6.20~ds1\n  Go version: go1.19.8\n";
        assert_eq!(says(debian), Says::default());
        assert!(!says("x:\n  Version:  v2.2.9\n").bootstrap);
        assert_eq!(says("x:\n  Version:  v2.3.0\n"), Says { bootstrap: true, socket: false });
        let ours = says("x:\n  Version: 0.1.0\n  Bootstrap: protobuf\n  Socket: stdin\n");
        assert_eq!(ours, Says { bootstrap: true, socket: true });
        assert_eq!(says("no idea"), Says::default());
        assert_eq!(parse_version("v10.2.3-rc.1"), Some((10, 2)));
        assert_eq!(parse_version("dev"), None);
    }

    #[tokio::test]
    async fn output_and_failure_are_reported() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat; echo oops >&2; exit 3"]);
        let output = run(command, b"input", Duration::from_secs(10)).await.expect("ran");
        assert_eq!(output.stdout, b"input");
        assert_eq!(output.text() + &output.status_text(), "oops\ninput: exit status 3");
        let missing = Command::new("/no/such/program");
        assert!(run(missing, b"", Duration::from_secs(10)).await.is_err());
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed() {
        let mut command = Command::new("/bin/sleep");
        command.arg("100");
        let err = run(command, b"", Duration::from_millis(50)).await.expect_err("hangs");
        assert!(err.is_deadline_exceeded());
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_pipe_does_not_hold_us_up() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 5 & echo hello"]);
        let before = std::time::Instant::now();
        let output = run(command, b"", Duration::from_secs(10)).await.expect("ran");
        assert!(output.status.success());
        assert_eq!(output.stdout, b"hello\n");
        assert!(before.elapsed() < Duration::from_secs(4));
    }
}
