//! Threads with attributes that are usually the process's.

use std::io;
use std::path::Path;

/// Runs `work` on a thread of its own whose working directory is `dir`; that of the process and
/// of other threads stays.
///
/// # Errors
/// The I/O error of getting there; what `work` returns is in the value.
pub fn in_directory<T: Send>(dir: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("in-directory".into());
        let thread = thread.spawn_scoped(scope, || {
            // SAFETY: a working directory (and umask and root) of this thread's own. The thread is
            // ours from start to end, so no code that counts on the shared one runs on it.
            if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
                return Err(io::Error::last_os_error());
            }
            std::env::set_current_dir(dir)?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_the_threads_own() {
        let before = std::env::current_dir().unwrap();
        let inside = in_directory(Path::new("/proc"), std::env::current_dir).unwrap().unwrap();
        assert_eq!(inside, Path::new("/proc"));
        assert_eq!(std::env::current_dir().unwrap(), before);
        assert!(in_directory(Path::new("/does/not/exist"), || ()).is_err());
    }
}
