//! The shim's socket: where it is, and taking it without a race.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt as _};
use sha2::{Digest as _, Sha256};

/// Where sockets are unless the daemon names a directory.
const DIRECTORY: &str = "/run/containerd/s";
/// A stale socket is removed and tried again this often; more means that someone else keeps
/// making it.
const ATTEMPTS_MAX: usize = 3;

/// What came of asking for a socket.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is ours, and listens.
    Ours(UnixListener),
    /// A shim of the same group answers on it.
    Theirs,
}

/// The socket of a group of containers under a daemon: the same for all of them, different for
/// everything else.
pub(crate) fn path(directory: Option<&str>, daemon: &str, namespace: &str, group: &str) -> PathBuf {
    let directory = directory.filter(|d| !d.is_empty()).unwrap_or(DIRECTORY);
    let digest = Sha256::digest(
        Path::new(daemon).join(namespace).join(group).as_os_str().as_encoded_bytes(),
    );
    let mut name = String::with_capacity(2 * digest.len());
    for byte in digest {
        name.push_str(&format!("{byte:02x}"));
    }
    Path::new(directory).join(name)
}

/// Takes the socket at `path`, or finds who has it.
///
/// The name appears only once the socket listens (it is linked, not bound, there), so whoever
/// finds it either connects or knows that its owner is dead.
///
/// # Errors
/// The directory cannot be made or written to.
pub(crate) fn take(path: &Path) -> Result<Taken> {
    let name = || format!("socket {}", path.display());
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).context(name)?;
    let temporary = directory.join(format!(".{}", std::process::id()));
    // Left by a shim of the same pid that died here.
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).context(name)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    let taken = std::fs::set_permissions(&temporary, mode)
        .context(name)
        .and_then(|()| link(&temporary, path, listener));
    // Its other name stays.
    let _ = std::fs::remove_file(&temporary);
    taken
}

fn link(temporary: &Path, path: &Path, listener: UnixListener) -> Result<Taken> {
    for _ in 0..ATTEMPTS_MAX {
        match std::fs::hard_link(temporary, path) {
            Ok(()) => return Ok(Taken::Ours(listener)),
            Err(err) if err.kind() == ErrorKind::AlreadyExists => {}
            Err(err) => return Err(Error::io(format!("socket {}", path.display()), err)),
        }
        if UnixStream::connect(path).is_ok() {
            return Ok(Taken::Theirs);
        }
        match std::fs::remove_file(path) {
            Err(err) if err.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format!("stale socket {}", path.display()), err));
            }
            _ => {}
        }
    }
    Err(Error::unavailable(format!("socket {}: others keep taking it", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_differ_by_daemon_namespace_and_group() {
        let base = path(None, "/run/containerd/containerd.sock", "default", "box");
        assert!(base.starts_with(DIRECTORY));
        assert_eq!(base.file_name().map(|n| n.len()), Some(64));
        assert_ne!(base, path(None, "/run/other.sock", "default", "box"));
        assert_ne!(base, path(None, "/run/containerd/containerd.sock", "k8s.io", "box"));
        assert!(path(Some("/s"), "/d", "n", "g").starts_with("/s"));
    }

    #[test]
    fn a_socket_is_taken_once_and_a_stale_one_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let Taken::Ours(first) = take(&path).expect("taken") else { panic!("must be ours") };
        assert!(matches!(take(&path).expect("looked at"), Taken::Theirs));
        drop(first);
        assert!(matches!(take(&path).expect("taken"), Taken::Ours(_)));
        let left = std::fs::read_dir(dir.path()).expect("lists").count();
        assert_eq!(left, 1, "no temporary name stays");
    }
}
