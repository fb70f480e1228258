//! The seam to whatever makes the container.
//!
//! Everything above this trait knows containers, processes, stdio and events; everything below
//! it knows how namespaces come to be. The one implementation execs an OCI runtime ([`Runc`]); an
//! engine inside this process replaces it with no change above.
//!
//! An engine is told, never asked: the shim follows every process by its exit, so no method here
//! returns the state of a container.

mod direct;
mod join;
mod log;
mod runc;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use gantry_errdefs::Result;

use crate::reaper::Exited;

pub use runc::{Runc, RuncConfig};

/// The three descriptors a process gets as its standard input, output and error.
#[derive(Debug)]
pub struct ChildStdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// A process that runs (or, for an init, waits to be let go).
#[derive(Debug)]
pub struct Spawned {
    /// Its pid in the shim's pid namespace.
    pub pid: u32,
    /// Tells its exit.
    pub exited: Exited,
    /// The process, for signals; none when it has exited already.
    pub pidfd: Option<OwnedFd>,
}

/// What to create a container from.
#[derive(Debug)]
pub struct Create<'a> {
    /// The container.
    pub id: &'a str,
    /// The directory with `config.json`; the engine leaves `init.pid` there.
    pub bundle: &'a Path,
    /// The init's stdio; not used when `console` is given.
    pub stdio: ChildStdio,
    /// Socket that is to receive the master of the init's terminal.
    pub console: Option<&'a Path>,
    /// Do not `pivot_root`.
    pub no_pivot: bool,
    /// Keep the session keyring.
    pub no_new_keyring: bool,
    /// Make it from a checkpoint instead of from its program.
    pub restore: Option<Restore>,
}

/// Where a checkpoint is.
#[derive(Clone, Debug, Default)]
pub struct Restore {
    /// Directory with criu's images.
    pub image: PathBuf,
    /// Directory for criu's work files and log.
    pub work: PathBuf,
    /// More options for criu.
    pub config: Option<PathBuf>,
    /// There are open TCP connections.
    pub open_tcp: bool,
    /// There are unix sockets whose other end is outside.
    pub external_unix_sockets: bool,
    /// There is a terminal.
    pub terminal: bool,
    /// There are file locks.
    pub file_locks: bool,
    /// Namespaces that were left empty.
    pub empty_namespaces: Vec<String>,
}

/// Another process for a running container.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container.
    pub id: &'a str,
    /// The name of the process, unique in the container.
    pub exec_id: &'a str,
    /// The bundle; temporary files go there.
    pub bundle: &'a Path,
    /// An OCI `process` object as JSON, as the client sent it.
    pub process: &'a [u8],
    /// The container's init, for engines that know it by this; none when it has exited.
    pub init: Option<OwnedFd>,
    /// Its stdio; not used when `console` is given.
    pub stdio: ChildStdio,
    /// Socket that is to receive the master of its terminal.
    pub console: Option<&'a Path>,
}

/// How to checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Directory to write criu's images to.
    pub image: String,
    /// Directory for criu's work files; empty is the bundle's work directory.
    pub work: String,
    /// More options for criu.
    pub config: Option<PathBuf>,
    /// Stop the container afterwards.
    pub exit: bool,
    /// Allow open TCP connections.
    pub open_tcp: bool,
    /// Allow unix sockets whose other end is outside.
    pub external_unix_sockets: bool,
    /// Allow a terminal.
    pub terminal: bool,
    /// Allow file locks.
    pub file_locks: bool,
    /// Namespaces to leave empty.
    pub empty_namespaces: Vec<String>,
    /// How to treat cgroups: `soft`, `full`, `strict`.
    pub cgroups_mode: String,
}

/// Makes, changes and removes containers. Errors of the runtime are `Unknown` with its own text:
/// `OCI runtime <verb> failed: <last error it logged>`.
#[async_trait]
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Makes the container's namespaces and its init, which waits for [`Engine::start`].
    ///
    /// # Errors
    /// The runtime's; nothing is left behind.
    async fn create(&self, call: Create<'_>) -> Result<Spawned>;

    /// Lets the init run its program.
    ///
    /// # Errors
    /// The runtime's.
    async fn start(&self, id: &str) -> Result<()>;

    /// Runs another process in the container.
    ///
    /// # Errors
    /// The runtime's.
    async fn exec(&self, call: Exec<'_>) -> Result<Spawned>;

    /// Sends a signal to the init, or to every process.
    ///
    /// # Errors
    /// NotFound when there is nothing to signal, else the runtime's.
    async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<()>;

    /// Removes what is left of a stopped container (any container with `force`): cgroups, the
    /// runtime's record. One that is gone already is success.
    ///
    /// # Errors
    /// The runtime's.
    async fn delete(&self, id: &str, force: bool) -> Result<()>;

    /// Freezes every process.
    ///
    /// # Errors
    /// The runtime's.
    async fn pause(&self, id: &str) -> Result<()>;

    /// Thaws every process.
    ///
    /// # Errors
    /// The runtime's.
    async fn resume(&self, id: &str) -> Result<()>;

    /// Changes resource limits; `resources` is an OCI `linux.resources` object as JSON.
    ///
    /// # Errors
    /// The runtime's.
    async fn update(&self, id: &str, resources: &[u8]) -> Result<()>;

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// The runtime's, with criu's log saved beside the bundle's other files.
    async fn checkpoint(&self, id: &str, bundle: &Path, call: &Checkpoint) -> Result<()>;

    /// The pids of every process; asked only where the cgroup cannot tell.
    ///
    /// # Errors
    /// The runtime's.
    async fn pids(&self, id: &str) -> Result<Vec<u32>>;
}
