//! Unix sockets: bound with their final mode, stale ones cleared, removed at the end.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt as _};
use tokio::net::UnixListener;

/// Owner and group may talk to the daemon, nobody else.
const SOCKET_MODE: u32 = 0o660;

/// A bound socket whose file goes away with it.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: Option<UnixListener>,
    file: SocketFile,
}

/// The file of a socket; removed on drop if it is still the one we made.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Bound {
    /// Splits the listener from the guard of its file.
    pub(crate) fn into_parts(mut self) -> (UnixListener, SocketFile) {
        let listener = self.listener.take().expect("a bound socket has its listener until now");
        (listener, self.file)
    }
}

/// Binds `path` with mode 0660 and the given owner. The socket appears under its name only when
/// mode and owner are right.
///
/// # Errors
/// FailedPrecondition when somebody answers on `path` or when it is no socket; else what the
/// system says.
pub(crate) fn bind(path: &Path, uid: u32, gid: u32) -> Result<Bound> {
    let name = || format!("socket {}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context(|| format!("directory {}", dir.display()))?;
    }
    clear_stale(path)?;
    let mut staging = path.as_os_str().to_owned();
    staging.push("~");
    let staging = PathBuf::from(staging);
    match std::fs::remove_file(&staging) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(name(), e));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&staging).context(name)?;
    let finish = || -> std::io::Result<u64> {
        std::fs::set_permissions(&staging, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        if (uid, gid) != (0, 0) {
            std::os::unix::fs::chown(&staging, Some(uid), Some(gid))?;
        }
        let inode = std::fs::symlink_metadata(&staging)?.ino();
        std::fs::rename(&staging, path)?;
        Ok(inode)
    };
    match finish() {
        Ok(inode) => {
            let file = SocketFile { path: path.to_owned(), inode };
            Ok(Bound { listener: Some(listener), file })
        }
        Err(e) => {
            // Nobody knows the staging name yet; failing to remove it changes nothing.
            let _ = std::fs::remove_file(&staging);
            Err(Error::io(name(), e))
        }
    }
}

fn clear_stale(path: &Path) -> Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("socket {}", path.display()))?,
    };
    if !meta.file_type().is_socket() {
        return Err(Error::failed_precondition(format!(
            "socket {}: a file that is no socket is in the way",
            path.display()
        )));
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(Error::failed_precondition(format!(
            "socket {}: another daemon is serving on it",
            path.display()
        ))),
        Err(_) => std::fs::remove_file(path).context(|| format!("socket {}", path.display())),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours {
            // Best effort: a stale socket is cleared by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
