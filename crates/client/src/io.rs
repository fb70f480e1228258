//! Input and output of processes: where they go, and the FIFOs in between.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;

/// Where FIFOs are made unless the caller says otherwise.
const FIFO_DIR: &str = "/run/gantry/fifo";

/// Where input, output and errors of a process go, as the shim is told: paths of FIFOs,
/// `file://` or `binary://` URIs, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Input; empty for none.
    pub stdin: String,
    /// Output; empty for none.
    pub stdout: String,
    /// Errors; empty for none, and with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// FIFOs in a directory of their own, removed on drop.
#[derive(Debug)]
pub struct FifoSet {
    dir: PathBuf,
    stdio: Stdio,
    kept: bool,
}

/// The client's ends of a process' FIFOs.
#[derive(Debug)]
pub struct Streams {
    /// Takes input. Drop it and call [`crate::Process::close_stdin`] to end the input.
    pub stdin: Option<pipe::Sender>,
    /// Gives output; ends when the shim has closed it.
    pub stdout: Option<pipe::Receiver>,
    /// Gives errors; ends when the shim has closed it.
    pub stderr: Option<pipe::Receiver>,
}

impl Stdio {
    /// No input; output is thrown away.
    pub fn null() -> Self {
        Self::default()
    }

    /// No input; output goes to a log URI such as `file:///var/log/x` or `binary:///bin/logger`.
    pub fn log_uri(uri: impl Into<String>, terminal: bool) -> Self {
        let uri = uri.into();
        let stderr = if terminal { String::new() } else { uri.clone() };
        Self { stdin: String::new(), stdout: uri, stderr, terminal }
    }

    /// Opens the client's ends of those that are FIFOs. Open before the task is made, or attach
    /// to one that runs: the shim keeps its ends open, so clients may come and go.
    ///
    /// # Errors
    /// NotFound when a FIFO is gone.
    pub fn open(&self) -> Result<Streams> {
        // The writing end is opened for reading too, so that opening does not wait for the shim.
        let stdin = fifo(&self.stdin)
            .map(|path| {
                pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(path)
                    .context(|| format!("opening {}", path.display()))
            })
            .transpose()?;
        let receiver = |text: &str| {
            fifo(text)
                .map(|path| {
                    pipe::OpenOptions::new()
                        .open_receiver(path)
                        .context(|| format!("opening {}", path.display()))
                })
                .transpose()
                .map_err(|e| e.context("output"))
        };
        let stdout = receiver(&self.stdout)?;
        // Both going to one place is one stream.
        let stderr = if self.stderr == self.stdout { None } else { receiver(&self.stderr)? };
        Ok(Streams { stdin, stdout, stderr })
    }
}

impl FifoSet {
    /// Makes FIFOs for process `id` under `base` (None for the default place): output always,
    /// errors unless there is a terminal, input if wanted.
    ///
    /// # Errors
    /// An I/O error.
    pub fn create(base: Option<&Path>, id: &str, stdin: bool, terminal: bool) -> Result<Self> {
        let base = base.map_or_else(default_base, Path::to_owned);
        let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
        let dir = base.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .context(|| format!("making {}", dir.display()))?;
        let mut set = Self { dir, stdio: Stdio { terminal, ..Stdio::default() }, kept: false };
        if stdin {
            set.stdio.stdin = set.make(id, "stdin")?;
        }
        set.stdio.stdout = set.make(id, "stdout")?;
        if !terminal {
            set.stdio.stderr = set.make(id, "stderr")?;
        }
        Ok(set)
    }

    /// What the daemon is told.
    pub fn stdio(&self) -> &Stdio {
        &self.stdio
    }

    /// Leaves the FIFOs where they are, for a process that outlives this client.
    pub fn keep(mut self) -> Stdio {
        self.kept = true;
        self.stdio.clone()
    }

    fn make(&self, id: &str, name: &str) -> Result<String> {
        let path = self.dir.join(format!("{id}-{name}"));
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o700), 0)
            .map_err(|e| Error::io(format!("making {}", path.display()), e.into()))?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for FifoSet {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl Stdio {
    /// Removes FIFOs that [`FifoSet::keep`] left behind; what is not there is no error.
    pub fn remove_fifos(&self) {
        for path in [&self.stdin, &self.stdout, &self.stderr] {
            let Some(path) = fifo(path) else { continue };
            let is_fifo = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_fifo());
            if !is_fifo {
                continue;
            }
            let _ = fs::remove_file(path);
            if let Some(dir) = path.parent() {
                // Only when it is empty.
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

/// The path of a FIFO; None for empty texts and URIs of other kinds.
fn fifo(text: &str) -> Option<&Path> {
    let path = text.strip_prefix("fifo://").unwrap_or(text);
    (path.starts_with('/')).then(|| Path::new(path))
}

/// The usual place for root, the user's runtime directory or the temporary one for others.
fn default_base() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(FIFO_DIR);
    }
    let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    base.join("gantry-fifo")
}
