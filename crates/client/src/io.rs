//! Input and output of processes: where they go, and the FIFOs in between.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::unix::pipe;

/// Where FIFOs are made unless the caller says otherwise.
const FIFO_DIR: &str = "/run/gantry/fifo";

/// Most that [`Streams::output`] keeps of either stream, in bytes.
const OUTPUT_SIZE_MAX: u64 = 16 << 20;

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

/// FIFOs in a directory, removed on drop.
#[derive(Debug)]
pub struct FifoSet {
    dir: PathBuf,
    stdio: Stdio,
    kept: bool,
    /// Whether others may have files in the directory.
    shared_dir: bool,
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

    /// No input; output and errors are appended to files by the shim, on the daemon's machine.
    /// Shims of containerd before 2.0 write both into the first.
    pub fn files(stdout: impl AsRef<Path>, stderr: impl AsRef<Path>) -> Self {
        let uri = |path: &Path| format!("file://{}", path.display());
        Self { stdout: uri(stdout.as_ref()), stderr: uri(stderr.as_ref()), ..Self::default() }
    }

    /// No input; output and errors go to a logging program that the shim starts, with
    /// `arguments` as names and values. It gets them as its third and fourth descriptor.
    pub fn binary(program: impl AsRef<Path>, arguments: &[(&str, &str)]) -> Self {
        let mut uri = format!("binary://{}", program.as_ref().display());
        for (n, (name, value)) in arguments.iter().enumerate() {
            let mark = if n == 0 { '?' } else { '&' };
            uri.push_str(&format!("{mark}{}={}", query_text(name), query_text(value)));
        }
        Self::log_uri(uri, false)
    }

    /// Ends output that nobody writes any more: to a reader that came after the last writer had
    /// left, a FIFO never ends by itself. Writers that are still there are not disturbed.
    pub(crate) fn end_output(&self) {
        for path in [&self.stdout, &self.stderr].into_iter().filter_map(|text| fifo(text)) {
            // Coming and going is what readers notice.
            drop(rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()));
        }
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
        let stdio = Stdio { terminal, ..Stdio::default() };
        let mut set = Self { dir, stdio, kept: false, shared_dir: false };
        set.make_all(id, stdin)?;
        Ok(set)
    }

    fn make_all(&mut self, id: &str, stdin: bool) -> Result<()> {
        if stdin {
            self.stdio.stdin = self.make(id, "stdin")?;
        }
        self.stdio.stdout = self.make(id, "stdout")?;
        if !self.stdio.terminal {
            self.stdio.stderr = self.make(id, "stderr")?;
        }
        Ok(())
    }

    /// Makes FIFOs `<id>-stdin` and so on in `dir` itself, which need not exist: for whoever has
    /// a directory per container. On drop the FIFOs are removed, and the directory stays.
    ///
    /// # Errors
    /// AlreadyExists for FIFOs that are there; an I/O error.
    pub fn create_in(dir: &Path, id: &str, stdin: bool, terminal: bool) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .context(|| format!("making {}", dir.display()))?;
        let stdio = Stdio { terminal, ..Stdio::default() };
        let mut set = Self { dir: dir.to_owned(), stdio, kept: false, shared_dir: true };
        set.make_all(id, stdin)?;
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
        if self.kept {
            return;
        }
        if self.shared_dir {
            for path in [&self.stdio.stdin, &self.stdio.stdout, &self.stdio.stderr] {
                let _ = fs::remove_file(path);
            }
        } else {
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

/// Output and errors, read to their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error; empty with a terminal.
    pub stderr: Vec<u8>,
}

impl Streams {
    /// Reads output and errors to their ends. Input is closed on this side.
    ///
    /// # Errors
    /// ResourceExhausted for more than 16 MiB of either; an I/O error.
    pub async fn output(self) -> Result<Output> {
        drop(self.stdin);
        let (stdout, stderr) = tokio::join!(read_all(self.stdout), read_all(self.stderr));
        Ok(Output { stdout: stdout?, stderr: stderr? })
    }

    /// Copies input to the process and its output and errors from it, until both have ended or
    /// the returned future is dropped. At the end of `stdin` the process' own is left open: call
    /// [`crate::Process::close_stdin`].
    ///
    /// # Errors
    /// An I/O error of output or errors; input that the process does not want is no error.
    pub async fn copy(
        self,
        mut stdin: impl AsyncRead + Unpin,
        mut stdout: impl AsyncWrite + Unpin,
        mut stderr: impl AsyncWrite + Unpin,
    ) -> Result<()> {
        let feed = async {
            if let Some(mut pipe) = self.stdin {
                // The process may end before its input.
                let _ = tokio::io::copy(&mut stdin, &mut pipe).await;
            }
            std::future::pending::<()>().await;
        };
        let drain = async {
            let out = async {
                match self.stdout {
                    Some(mut pipe) => tokio::io::copy(&mut pipe, &mut stdout).await,
                    None => Ok(0),
                }
            };
            let err = async {
                match self.stderr {
                    Some(mut pipe) => tokio::io::copy(&mut pipe, &mut stderr).await,
                    None => Ok(0),
                }
            };
            tokio::try_join!(out, err)
        };
        tokio::select! {
            () = feed => Ok(()),
            done = drain => done.map(drop).context(|| "copying output"),
        }
    }
}

async fn read_all(pipe: Option<pipe::Receiver>) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_SIZE_MAX + 1).read_to_end(&mut all).await.context(|| "reading output")?;
    }
    if all.len() as u64 > OUTPUT_SIZE_MAX {
        let why = format!("output: more than {OUTPUT_SIZE_MAX} bytes");
        return Err(Error::resource_exhausted(why));
    }
    Ok(all)
}

/// A text within the query of a URI.
fn query_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
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
