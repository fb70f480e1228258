//! Freeing the space of removed snapshots.
//!
//! A removed snapshot may hold a million files. `remove` only renames it to a `.removed-` name;
//! one thread at a time, made when there is work, deletes what has such a name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_errdefs::{Error, Result, ResultExt as _};

/// Prefix of directories on their way out.
const PREFIX: &str = ".removed-";

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
        loop {
            if let Err(err) = self.empty() {
                tracing::warn!(%err, "removed snapshots still take space");
            }
            let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            if *thread != Thread::Asked {
                *thread = Thread::None;
                return;
            }
            *thread = Thread::Running;
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_sys::tree;

    use super::*;

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
