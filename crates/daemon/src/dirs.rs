//! The daemon's own directories: made with the right modes, held by one process, swept at boot.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_errdefs::{Error, Result, ResultExt as _};
use rustix::fs::{FlockOperation, flock};
use tracing::info;

use crate::config::Config;

/// Only root may look into the persistent state.
const ROOT_MODE: u32 = 0o700;

/// Containers in user namespaces must be able to pass through the volatile state.
const STATE_MODE: u32 = 0o711;

/// How long a second daemon waits for the first to let go: a restart overlaps by this much.
pub(crate) const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often the lock is tried while waiting.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Name of the lock file below the root.
const LOCK_NAME: &str = "gantry.lock";

/// Name of the directory of temporary mounts below the root.
const TEMP_MOUNTS: &str = "tmpmounts";

/// Holds the root directory for this process; released when dropped or when the process dies.
#[derive(Debug)]
pub(crate) struct RootLock {
    _file: File,
}

/// Makes root and state with their modes.
///
/// # Errors
/// When a directory cannot be made or its mode cannot be set.
pub(crate) fn create(config: &Config) -> Result<()> {
    make(&config.root, ROOT_MODE)?;
    make(&config.state, STATE_MODE)?;
    if !config.temp.is_empty() {
        make(Path::new(&config.temp), ROOT_MODE)?;
    }
    Ok(())
}

/// Makes a directory that only root may look into.
///
/// # Errors
/// When it cannot be made or its mode cannot be set.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    make(path, ROOT_MODE)
}

fn make(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .context(|| format!("directory {}", path.display()))?;
    // The umask may have taken bits away, and an older directory may have others.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .context(|| format!("directory {}: mode {mode:o}", path.display()))
}

/// Takes the lock of `root`, waiting up to `patience` for another daemon to go.
///
/// # Errors
/// FailedPrecondition naming the process that holds it.
pub(crate) fn lock(root: &Path, patience: Duration) -> Result<RootLock> {
    let path = root.join(LOCK_NAME);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .context(|| format!("lock {}", path.display()))?;
    let deadline = Instant::now() + patience;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                if !told {
                    info!(root = %root.display(), pid = %holder(&mut file), "waiting for another daemon on this root");
                    told = true;
                }
                std::thread::sleep(LOCK_POLL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::failed_precondition(format!(
                    "root {}: another daemon (pid {}) is using it",
                    root.display(),
                    holder(&mut file)
                )));
            }
            Err(e) => return Err(Error::io(format!("lock {}", path.display()), e.into())),
        }
    }
    file.set_len(0).context(|| path.display().to_string())?;
    file.rewind().context(|| path.display().to_string())?;
    writeln!(file, "{}", std::process::id()).context(|| path.display().to_string())?;
    Ok(RootLock { _file: file })
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    match read {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Takes the directory of temporary mounts, cleaned of what a killed daemon left there.
///
/// # Errors
/// When the directory cannot be made or read.
pub(crate) fn temp_mounts(root: &Path) -> Result<gantry_mount::TempRoot> {
    gantry_mount::TempRoot::open(root.join(TEMP_MOUNTS))
}
