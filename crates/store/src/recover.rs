//! Making the database anew from its safety copy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};
use redb::{Database, Durability, Table};

use crate::copy::{Copies, beside, dump_path, log_path, sync_dir_of};
use crate::frames::{self, Ending, Entry};
use crate::redb_store::{Bytes, RECORDS, storage_error};

/// Entries written by one transaction.
const ENTRIES_PER_COMMIT: usize = 10_000;

/// Replaces the damaged database at `path` with one made from the newest whole dump and the logs
/// after it. The damaged file is kept as `<path>.damaged`.
///
/// # Errors
/// DataLoss when there is no usable copy; nothing is changed then.
pub(crate) fn recover(path: &Path, damage: Error) -> Result<()> {
    let fresh = beside(path, ".recovering");
    let rebuilt = rebuild(path, &fresh);
    let entries = match rebuilt {
        Ok(Some(entries)) => entries,
        Ok(None) => return Err(damage.context("no safety copy to recover from")),
        Err(err) => {
            return Err(Error::data_loss(format!("{}; recovering: {err}", damage.message())));
        }
    };
    let damaged = beside(path, ".damaged");
    let what = || format!("database {}: putting it in place", path.display());
    gantry_failpoint::hit("store.recover").context(what)?;
    if path.exists() {
        fs::rename(path, &damaged).context(what)?;
    }
    // Between the two there is no database at all; the copy is, and the next start uses it.
    gantry_failpoint::hit("store.recovered").context(what)?;
    fs::rename(&fresh, path).context(what)?;
    sync_dir_of(path)?;
    tracing::error!(
        path = %path.display(), damaged = %damaged.display(), entries,
        "the database was damaged ({damage}) and has been made anew from its safety copy"
    );
    Ok(())
}

/// Builds the database at `fresh`; None when there is nothing to build it from.
fn rebuild(path: &Path, fresh: &Path) -> Result<Option<u64>> {
    let copies = Copies::find(path).context(|| "looking for copies")?;
    let whole = copies.dumps.iter().rev().copied().find(|n| is_whole(&dump_path(path, *n)));
    // Before the first dump the logs begin with the empty database.
    let first = match whole {
        Some(n) => n,
        None if copies.logs.first() == Some(&0) => 0,
        None => return Ok(None),
    };
    if fresh.exists() {
        fs::remove_file(fresh).context(|| fresh.display().to_string())?;
    }
    let db = Database::create(fresh).map_err(|e| storage_error(fresh, e.into()))?;
    let mut filler = Filler::new(&db, fresh);
    if whole.is_some() {
        filler.apply(&dump_path(path, first), 0)?;
    }
    for n in copies.logs.into_iter().filter(|n| *n >= first) {
        filler.apply(&log_path(path, n), 0)?;
    }
    filler.flush()?;
    Ok(Some(filler.entries()))
}

/// Whether a dump has all its entries.
fn is_whole(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let (mut count, mut promised) = (0_u64, None);
    let read = frames::read(file, 0, &mut |entry| {
        match entry {
            Entry::End(n) => promised = Some(n),
            Entry::Put(..) | Entry::Delete(_) => count += 1,
        }
        Ok::<(), std::io::Error>(())
    });
    read.is_ok_and(|ending| ending == Ending::Clean) && promised == Some(count)
}

/// Writes what copies hold into a database, durably, some at a time: whoever is interrupted begins
/// again, and comes to the same end.
pub(crate) struct Filler<'a> {
    db: &'a Database,
    path: PathBuf,
    pending: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    entries: u64,
}

impl<'a> Filler<'a> {
    /// `path` is the database's, for errors.
    pub(crate) fn new(db: &'a Database, path: &Path) -> Self {
        Self { db, path: path.to_owned(), pending: Vec::new(), entries: 0 }
    }

    /// Entries written so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Takes the entries of a dump or log from `offset` on.
    pub(crate) fn apply(&mut self, copy: &Path, offset: u64) -> Result<()> {
        let file = File::open(copy).context(|| copy.display().to_string())?;
        let mut entry_error = None;
        let read = frames::read(file, offset, &mut |entry| {
            self.pending.push(match entry {
                Entry::Put(key, value) => (key.to_vec(), Some(value.to_vec())),
                Entry::Delete(key) => (key.to_vec(), None),
                Entry::End(_) => return Ok(()),
            });
            if self.pending.len() < ENTRIES_PER_COMMIT {
                return Ok(());
            }
            self.flush().map_err(|err| {
                entry_error = Some(err);
                std::io::Error::other("flush")
            })
        });
        match (entry_error, read) {
            (Some(err), _) => Err(err),
            (None, read) => {
                if read.context(|| copy.display().to_string())? != Ending::Clean {
                    tracing::warn!(
                        copy = %copy.display(),
                        "ends in a frame that a crash cut, or that is damaged with all after it"
                    );
                }
                Ok(())
            }
        }
    }

    /// Writes what is left.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let failed = |e: redb::Error| storage_error(&self.path, e);
        let mut txn = self.db.begin_write().map_err(|e| failed(e.into()))?;
        txn.set_durability(Durability::Immediate)
            .map_err(|e| Error::internal(format!("database durability: {e}")))?;
        {
            let mut table: Table<'_, Bytes, Bytes> =
                txn.open_table(RECORDS).map_err(|e| failed(e.into()))?;
            self.entries += self.pending.len() as u64;
            for (key, value) in self.pending.drain(..) {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice()).map(drop),
                    None => table.remove(key.as_slice()).map(drop),
                }
                .map_err(|e| storage_error(&self.path, e.into()))?;
            }
        }
        txn.commit().map_err(|e| storage_error(&self.path, e.into()))
    }
}
