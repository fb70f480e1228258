//! Starting a shim by one exec: with its listening socket as standard input.
//!
//! The usual `start` verb executes the program twice, waits for the first run and reads what it
//! prints. A program that says so in its version takes its socket from us instead: we bind it,
//! under the name that `start` would give it, and may connect at once.
//!
//! The program is executed from a read-only mount of its own ([`gantry_sys::program`]), so that
//! it may let its children enter containers.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use gantry_core::{Algorithm, Digester};
use gantry_errdefs::{Error, Result, ResultExt as _};
use rustix::process::{Pid, PidfdFlags};

use crate::binary::Binary;
use crate::bootstrap::Bootstrap;

/// What a shim that takes its socket speaks.
const VERSION: u32 = 3;
/// The largest OOM score there is.
const OOM_SCORE_MAX: i32 = 1000;
/// A stale socket is removed and its name tried again this often.
const ATTEMPTS_MAX: usize = 3;

/// A shim that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) bootstrap: Bootstrap,
    /// The process, as a pidfd; none when it has ended already.
    pub(crate) process: Option<OwnedFd>,
}

/// Starts `binary`, whose program is `program` on its mount, for a container that shares its shim
/// with no other. None when someone listens on its socket already: the `start` verb knows what to
/// do.
///
/// # Errors
/// The socket cannot be made, or the program not executed.
pub(crate) fn launch(binary: &Binary<'_>, program: Option<&OwnedFd>) -> Result<Option<Launched>> {
    let path = socket_path(binary);
    let Some(listener) = listen(&path)? else { return Ok(None) };
    let address = format!("unix://{}", path.display());
    let started = record(binary, &address).and_then(|()| spawn(binary, program, listener));
    match started {
        Ok(process) => {
            let protocol = "ttrpc".to_owned();
            let bootstrap = Bootstrap { version: VERSION, address, protocol };
            Ok(Some(Launched { bootstrap, process }))
        }
        Err(err) => {
            // Nobody will ever listen on it.
            let _ = std::fs::remove_file(&path);
            Err(err)
        }
    }
}

/// The name that the shim's own `start` verb gives: a hash of the daemon's address, the namespace
/// and the group of containers, which is this one's id.
fn socket_path(binary: &Binary<'_>) -> PathBuf {
    let config = binary.config;
    let identity = Path::new(&config.grpc_address).join(binary.namespace.as_str()).join(binary.id);
    let mut digester = Digester::new(Algorithm::Sha256);
    digester.update(identity.as_os_str().as_encoded_bytes());
    config.socket_dir.join(digester.finish().hex())
}

/// Listens at `path`, which appears only once it is listened on. None when another does.
fn listen(path: &Path) -> Result<Option<UnixListener>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = || format!("socket {}", path.display());
    let directory = path.parent().unwrap_or(Path::new("/"));
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{}-{n}", std::process::id()));
    let bind = || {
        // Left by a daemon of the same pid that died here.
        let _ = std::fs::remove_file(&temporary);
        UnixListener::bind(&temporary)
    };
    let listener = match bind() {
        Err(err) if err.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(directory).context(name)?;
            bind()
        }
        other => other,
    };
    let listener = listener.context(name)?;
    let private = std::fs::Permissions::from_mode(0o600);
    let linked = std::fs::set_permissions(&temporary, private)
        .context(name)
        .and_then(|()| link(&temporary, path));
    // Its other name stays.
    let _ = std::fs::remove_file(&temporary);
    Ok(linked?.then_some(listener))
}

fn link(temporary: &Path, path: &Path) -> Result<bool> {
    for _ in 0..ATTEMPTS_MAX {
        match std::fs::hard_link(temporary, path) {
            Ok(()) => return Ok(true),
            Err(err) if err.kind() == ErrorKind::AlreadyExists => {}
            Err(err) => return Err(Error::io(format!("socket {}", path.display()), err)),
        }
        if UnixStream::connect(path).is_ok() {
            return Ok(false);
        }
        match std::fs::remove_file(path) {
            Err(err) if err.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format!("stale socket {}", path.display()), err));
            }
            _ => {}
        }
    }
    Ok(false)
}

/// The shim looks here for the name of its socket, and so do daemons of before 1.7.
fn record(binary: &Binary<'_>, address: &str) -> Result<()> {
    let path = binary.bundle.path.join("address");
    gantry_failpoint::hit("bundle.address")
        .and_then(|()| std::fs::write(&path, address))
        .context(|| path.display().to_string())
}

fn spawn(
    binary: &Binary<'_>,
    program: Option<&OwnedFd>,
    listener: UnixListener,
) -> Result<Option<OwnedFd>> {
    let protected = program.map(gantry_sys::program::path_of);
    let mut command = binary.command_of(protected.as_deref().unwrap_or(binary.program));
    let (name, value) = gantry_sys::memory::FRUGAL_ENV;
    command
        .arg0(binary.program)
        .env(name, value)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().map_err(|err| {
        Error::unknown(format!("failed to start shim: {}: {err}", binary.program.display()))
            .with_source(err)
    })?;
    let pid = child.id();
    if let Some(pid) = pid {
        adjust_oom_score(pid);
    }
    // Not reaped before it is waited for below, so the pid is its.
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let process = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    // Its end is told by its connection; this only leaves no zombie.
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
    Ok(process)
}

/// One above ours: the kernel takes the shim before the daemon, and what the container's spec says
/// decides about the container.
fn adjust_oom_score(pid: u32) {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let Ok(score) = text.trim().parse::<i32>() else { return };
    let score = (score + 1).min(OOM_SCORE_MAX);
    if let Err(err) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        tracing::debug!(pid, %err, "OOM score of a shim");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_listened_on_once_and_a_stale_one_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("made").join("s");
        let first = listen(&path).expect("listens").expect("nobody else does");
        UnixStream::connect(&path).expect("connects");
        assert!(listen(&path).expect("looks").is_none());
        drop(first);
        let again = listen(&path).expect("listens").expect("the first is gone");
        let mode = path.metadata().expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names = std::fs::read_dir(dir.path().join("made")).expect("lists").count();
        assert_eq!(names, 1);
        drop(again);
    }
}
