//! Freeing the space of removed snapshots.
//!
//! A removed snapshot may hold a million files. `remove` only renames it to a `.removed-` name;
//! one thread at a time, made when there is work, deletes what has such a name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_errdefs::{Error, Result, ResultExt as _};

/// Prefix of directories on their way out.
const PREFIX: &str = ".removed-";

/// How often a deletion that fails is tried again: whoever still writes there, or has it mounted,
/// has lost the snapshot and is gone in a moment.
const RETRIES_MAX: u32 = 10;

/// The pause before the first of them; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The removed directories among those of snapshots.
#[derive(Debug)]
pub(super) struct Trash {
    dir: PathBuf,
    /// Held while deleting: two at the same tree would trip over each other.
    deleting: Mutex<()>,
    thread: Mutex<Thread>,
    /// Deletes one of them.
    remove: fn(&Path) -> io::Result<()>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Thread {
    #[default]
    None,
    Running,
    /// Running, and to look again before it ends.
    Asked,
}

impl Trash {
    pub(super) fn new(dir: &Path, remove: fn(&Path) -> io::Result<()>) -> Self {
        let (deleting, thread) = Default::default();
        Self { dir: dir.to_owned(), deleting, thread, remove }
    }

    /// Whether a directory of this name is removed.
    pub(super) fn owns(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// Takes the directory of snapshot `id`; false when it has none.
    pub(super) fn take(&self, dir: &Path, id: u64) -> Result<bool> {
        let mut name = format!("{PREFIX}{id}");
        gantry_failpoint::hit("snapshot.trash").context(|| dir.display().to_string())?;
        loop {
            match fs::rename(dir, self.dir.join(&name)) {
                Ok(()) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                // Numbers begin anew after a restart, and an older one may be on its way out.
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => name.push('+'),
                Err(e) => return Err(Error::io(format!("rename {}", dir.display()), e)),
            }
        }
    }

    /// Whether anything removed is still there.
    pub(super) fn has_any(&self) -> Result<bool> {
        let what = || self.dir.display().to_string();
        for entry in fs::read_dir(&self.dir).context(what)? {
            if Self::owns(&entry.context(what)?.file_name().to_string_lossy()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes everything removed so far.
    ///
    /// # Errors
    /// The first I/O error, after everything else was deleted.
    pub(super) fn empty(&self) -> Result<()> {
        let _deleting = self.deleting.lock().unwrap_or_else(PoisonError::into_inner);
        let what = || self.dir.display().to_string();
        let mut first_error = Ok(());
        for entry in fs::read_dir(&self.dir).context(what)? {
            let entry = entry.context(what)?;
            if Self::owns(&entry.file_name().to_string_lossy()) {
                let path = entry.path();
                let removed = (self.remove)(&path).context(|| path.display().to_string());
                first_error = first_error.and(removed);
            }
        }
        first_error
    }

    /// Whether a thread is at it, or will be.
    pub(super) fn is_busy(&self) -> bool {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) != Thread::None
    }

    /// Has everything removed so far deleted by a thread.
    ///
    /// # Errors
    /// The I/O error when no thread can be made.
    pub(super) fn empty_soon(self: &Arc<Self>) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if *thread != Thread::None {
            *thread = Thread::Asked;
            return Ok(());
        }
        let this = Arc::clone(self);
        std::thread::Builder::new()
            .name("snapshot-trash".into())
            .spawn(move || this.run())
            .context(|| "start the thread that deletes removed snapshots")?;
        *thread = Thread::Running;
        Ok(())
    }

    fn run(&self) {
        let mut retries = 0;
        loop {
            let emptied = self.empty();
            let pause = {
                let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
                let is_asked = *thread == Thread::Asked;
                match emptied {
                    // Its own directory has gone: there is nothing to free any more.
                    Err(err) if retries == RETRIES_MAX || !self.dir.exists() => {
                        tracing::warn!(%err, "removed snapshots still take space");
                        *thread = Thread::None;
                        return;
                    }
                    Ok(()) if !is_asked => {
                        *thread = Thread::None;
                        return;
                    }
                    Ok(()) => {
                        *thread = Thread::Running;
                        retries = 0;
                        continue;
                    }
                    Err(err) => tracing::debug!(%err, "removed snapshots are at work still"),
                }
                *thread = Thread::Running;
                retries += 1;
                RETRY_PAUSE * 2_u32.pow(retries - 1)
            };
            std::thread::sleep(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_sys::tree;

    use super::*;

    #[test]
    fn what_is_still_written_to_goes_in_the_end() {
        let temp = tempfile::tempdir().unwrap();
        let trash = Arc::new(Trash::new(temp.path(), tree::remove));
        let dir = temp.path().join("1");
        fs::create_dir_all(dir.join("full")).unwrap();
        // Like a layer that is being unpacked by somebody who has lost it.
        assert!(trash.take(&dir, 1).unwrap());
        let moved = temp.path().join(format!("{PREFIX}1/full"));
        let writing = std::thread::spawn(move || {
            for n in 0..5_000 {
                let _ = fs::create_dir(moved.join(n.to_string()));
            }
        });
        trash.empty_soon().unwrap();
        writing.join().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while fs::read_dir(temp.path()).unwrap().count() > 0 {
            assert!(std::time::Instant::now() < deadline, "it does not go");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn takes_a_number_again() {
        let temp = tempfile::tempdir().unwrap();
        let trash = Trash::new(temp.path(), tree::remove);
        let dir = temp.path().join("1");
        for _ in 0..3 {
            fs::create_dir_all(dir.join("full")).unwrap();
            assert!(trash.take(&dir, 1).unwrap());
        }
        assert!(!trash.take(&dir, 1).unwrap());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 3);
        trash.empty().unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}
