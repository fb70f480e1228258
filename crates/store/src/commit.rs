//! Commits, on the writer thread: run, logged, in the database, answered.
//!
//! A batch is answered when both have it. One write that nobody waits behind is answered when the log
//! has it, which is what makes it durable; the database, where readers look, follows while the answer
//! is on its way, and readers wait for that. For a client that makes one call after the other this is
//! most of what a write takes besides the sync.

use std::sync::atomic::Ordering;

use gantry_errdefs::{Error, Result, ResultExt};
use redb::{Durability, StorageError, Table, WriteTransaction};

use crate::copy::Copier;
use crate::frames::Frame;
use crate::log;
use crate::redb_store::{Bytes, RECORDS, Shared, WriteState, hold};
use crate::txn::{Hook, Writes};
use crate::work::{Job, run_hooks};

/// Largest write, keys and values, that is answered before the database has it: far below what the
/// database would refuse, which nobody could be told of any more.
const AHEAD_BYTES_MAX: usize = 16 << 20;

impl Shared {
    /// Runs the writes of a batch, commits them together, and answers everyone.
    pub(crate) fn serve(&self, batch: &mut Vec<Job>, copier: &mut Copier) {
        let failure = match self.commit(batch, copier) {
            Ok(hooks) => {
                run_hooks(hooks);
                None
            }
            Err(err) => {
                copier.forget();
                tracing::error!(path = %self.path.display(), "database commit failed: {err}");
                Some((err.class(), err.message().to_owned()))
            }
        };
        for job in batch.drain(..) {
            job.finish(failure.as_ref().map(|(class, text)| Error::new(*class, text.as_str())));
        }
    }

    /// Runs a batch and commits it. Who is left in it is to be answered: the error is the whole
    /// batch's.
    fn commit(&self, batch: &mut Vec<Job>, copier: &mut Copier) -> Result<Vec<Hook>> {
        if self.heal()? {
            self.dump(copier);
        }
        let hooks = match batch.as_slice() {
            [_] => self.commit_one(batch, copier)?,
            _ => self.commit_many(batch, copier)?,
        };
        if copier.is_due() {
            self.dump(copier);
        }
        Ok(hooks)
    }

    fn commit_many(&self, batch: &mut [Job], copier: &mut Copier) -> Result<Vec<Hook>> {
        let db = self.db();
        let txn = db.as_ref().ok_or_else(|| self.closed())?.begin_write();
        let txn = txn.map_err(|e| self.failed(e))?;
        let strict = !self.options.no_sync && batch.iter().any(Job::is_strict);
        let mut hooks = Vec::new();
        let mut wrote = false;
        {
            let mut table = txn.open_table(RECORDS).map_err(|e| self.failed(e))?;
            for job in batch {
                let Some((writes, own_hooks)) = job.run(&WriteState(&table)) else { continue };
                wrote |= !writes.is_empty();
                note(&writes, copier.frame());
                merge(&mut table, &writes).map_err(|e| self.failed(e))?;
                hooks.extend(own_hooks);
            }
        }
        if !wrote {
            self.abort(txn, strict, copier)?;
            return Ok(hooks);
        }
        let logged = self.append(strict, copier)?;
        self.finish(txn, logged, copier)?;
        committed();
        Ok(hooks)
    }

    /// As [`Shared::commit_many`], for one write; takes it out of the batch when it has been
    /// answered.
    fn commit_one(&self, batch: &mut Vec<Job>, copier: &mut Copier) -> Result<Vec<Hook>> {
        let [job] = batch.as_mut_slice() else { return Ok(Vec::new()) };
        let db = self.db();
        let txn = db.as_ref().ok_or_else(|| self.closed())?.begin_write();
        let txn = txn.map_err(|e| self.failed(e))?;
        let strict = !self.options.no_sync && job.is_strict();
        let mut table = txn.open_table(RECORDS).map_err(|e| self.failed(e))?;
        let (writes, hooks) = job.run(&WriteState(&table)).unwrap_or_default();
        if writes.is_empty() {
            drop(table);
            self.abort(txn, strict, copier)?;
            return Ok(hooks);
        }
        note(&writes, copier.frame());
        let small = len(&writes) <= AHEAD_BYTES_MAX;
        let logged = self.append(strict, copier)?;
        if !logged || !small {
            merge(&mut table, &writes).map_err(|e| self.failed(e))?;
            drop(table);
            self.finish(txn, logged, copier)?;
            committed();
            return Ok(hooks);
        }
        // From here on it has come about. Nobody reads any more what was before.
        copier.committed();
        committed();
        let mut latest = hold(&self.latest);
        *latest = None;
        run_hooks(hooks);
        batch.drain(..).for_each(|job| job.finish(None));
        let followed = merge(&mut table, &writes).map_err(|e| self.failed(e));
        drop(table);
        let followed = followed.and_then(|()| self.follow(txn));
        drop((latest, db));
        if let Err(err) = followed {
            // The log has it: the database is opened again and gets it from there.
            self.broken.store(true, Ordering::Release);
            tracing::error!(path = %self.path.display(), "the database is behind its log: {err}");
            match self.heal() {
                Ok(_) => self.dump(copier),
                Err(err) => tracing::error!(path = %self.path.display(), "opening it: {err}"),
            }
        }
        Ok(Vec::new())
    }

    /// Ends a batch that wrote nothing. A strict caller waits for the relaxed writes before it all
    /// the same.
    fn abort(&self, txn: WriteTransaction, strict: bool, copier: &mut Copier) -> Result<()> {
        txn.abort().map_err(|e| self.failed(e))?;
        if strict && !copier.sync() {
            self.checkpoint(None)?;
        }
        Ok(())
    }

    /// Appends what was noted to the log. False when the database has to be durable by itself: the
    /// log failed, or a checkpoint is due.
    fn append(&self, strict: bool, copier: &mut Copier) -> Result<bool> {
        gantry_failpoint::hit("store.commit").context(|| self.path.display().to_string())?;
        Ok(copier.append(strict) && !copier.checkpoint_is_due())
    }

    /// Commits to the database: in memory when the log has it, else durably, with a note of where
    /// the log goes on.
    fn finish(&self, txn: WriteTransaction, logged: bool, copier: &mut Copier) -> Result<()> {
        if logged {
            self.follow(txn)?;
        } else {
            log::note(&txn, copier.position()).map_err(|e| self.failed(e))?;
            copier.checkpointed();
            txn.commit().map_err(|e| self.failed(e))?;
        }
        copier.committed();
        *hold(&self.latest) = None;
        Ok(())
    }

    /// Commits what the log has to the database, in memory.
    fn follow(&self, mut txn: WriteTransaction) -> Result<()> {
        gantry_failpoint::hit("store.follow").context(|| self.path.display().to_string())?;
        #[cfg(test)]
        crate::tests::Faults::check_follow(self.options.faults.as_ref())
            .context(|| "an injected fault")?;
        txn.set_durability(Durability::None)
            .map_err(|e| Error::internal(format!("database durability: {e}")))?;
        txn.commit().map_err(|e| self.failed(e))
    }
}

/// Where a commit has come about, and nobody was told yet. Too late to fail.
fn committed() {
    let _ = gantry_failpoint::hit("store.committed");
}

fn len(writes: &Writes) -> usize {
    writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}

/// Notes writes for the log.
fn note(writes: &Writes, frame: &mut Frame) {
    for (key, value) in writes {
        match value {
            Some(value) => frame.put(key, value),
            None => frame.delete(key),
        }
    }
}

fn merge(table: &mut Table<'_, Bytes, Bytes>, writes: &Writes) -> Result<(), StorageError> {
    for (key, value) in writes {
        match value {
            Some(value) => drop(table.insert(key.as_slice(), value.as_slice())?),
            None => drop(table.remove(key.as_slice())?),
        }
    }
    Ok(())
}
