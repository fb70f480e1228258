//! The log: a commit is durable here first.
//!
//! A commit is one frame, appended to the current log and synced, all callers of the moment with
//! it: one write to blocks that exist, and no metadata of the filesystem. The database has it in
//! memory then, and on disk with the next *checkpoint*, a commit of its own that is synced. It
//! holds the [`Position`] up to which it has the log; opening replays the rest.
//!
//! The file is filled with zeros ahead of what is written, so that a sync has no size and no
//! extents to write. Frames that nobody waits for extend it as they come, and the sync after them
//! fills what follows. A frame of no length, or the end of the file, ends what is read.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};
use redb::{Database, ReadableDatabase, TableDefinition, TableError, WriteTransaction};

use crate::copy::{Copies, log_path, sync_dir_of};
use crate::frames::{self, MAGIC};
use crate::recover::Filler;
use crate::redb_store::{Options, storage_error};

/// Zeros written ahead at a time, at most: seldom enough to cost nothing, few enough to be quick.
/// A shorter log gets as many as it is long: a daemon that writes little need not write them in vain.
const ROOM_LEN: u64 = 1 << 20;

/// As many of them at first.
const FIRST_ROOM_LEN: u64 = 64 << 10;

/// Where the database says what it has. Its name is part of the on-disk format.
const POSITION: TableDefinition<'static, &'static str, (u64, u64)> =
    TableDefinition::new("log position");

/// Its one key.
const KEY: &str = "log";

/// A place in the logs: everything before it is in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) number: u64,
    pub(crate) offset: u64,
}

/// The log that is written to.
pub(crate) struct Log {
    file: File,
    path: PathBuf,
    number: u64,
    /// Where the next frame goes.
    end: u64,
    /// Up to where the file is filled, durably; less than `end` when frames have extended it.
    room: u64,
    /// Up to where it is durable.
    synced: u64,
    #[cfg(test)]
    faults: Option<std::sync::Arc<crate::tests::Faults>>,
}

impl Log {
    /// Begins the log `number`, durably.
    pub(crate) fn begin(
        database: &Path,
        number: u64,
        #[cfg_attr(not(test), expect(unused_variables, reason = "only tests inject faults"))]
        options: &Options,
    ) -> Result<Self> {
        let path = log_path(database, number);
        let what = || path.display().to_string();
        let mut file =
            File::options().write(true).create(true).truncate(true).open(&path).context(what)?;
        file.write_all(MAGIC).context(what)?;
        let end = MAGIC.len() as u64;
        let mut log = Self {
            file,
            path: path.clone(),
            number,
            end,
            room: end,
            synced: end,
            #[cfg(test)]
            faults: options.faults.clone(),
        };
        log.fill(FIRST_ROOM_LEN).context(what)?;
        sync_dir_of(database)?;
        Ok(log)
    }

    /// Where its end is.
    pub(crate) fn position(&self) -> Position {
        Position { number: self.number, offset: self.end }
    }

    /// Appends a frame, not durable yet.
    ///
    /// # Errors
    /// The I/O error; the log is then of no further use, and has the frame or has not.
    pub(crate) fn append(&mut self, frame: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        crate::tests::Faults::check_log(self.faults.as_ref())?;
        self.file.write_all_at(frame, self.end)?;
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Makes all frames durable.
    ///
    /// # Errors
    /// The I/O error; as of [`Log::append`].
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.synced == self.end {
            return Ok(());
        }
        gantry_failpoint::hit("store.log.sync")?;
        if self.end > self.room {
            self.fill(self.end.clamp(FIRST_ROOM_LEN, ROOM_LEN))?;
        } else {
            self.file.sync_data()?;
        }
        self.synced = self.end;
        #[cfg(test)]
        crate::tests::Faults::log_synced(self.faults.as_ref(), &self.path, self.end);
        Ok(())
    }

    /// Gives back the room that was not needed.
    pub(crate) fn close(self) {
        let end = self.end;
        self.cut(end);
    }

    /// Ends the log at `end`: what was appended after it did not come about.
    pub(crate) fn cut(self, end: u64) {
        if let Err(err) = self.file.set_len(end) {
            tracing::warn!(path = %self.path.display(), "cutting a log: {err}");
        }
    }

    /// Writes `len` zeros after the last frame and makes all durable, with the size and the extents,
    /// which the syncs after this need not write.
    fn fill(&mut self, len: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let (mut at, room) = (self.end, self.end + len);
        while at < room {
            let piece = usize::try_from(room - at).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
            self.file.write_all_at(&ZEROS[..piece], at)?;
            at += piece as u64;
        }
        self.file.sync_all()?;
        self.room = room;
        Ok(())
    }
}

/// Whether nothing was ever written to a log.
pub(crate) fn is_empty(path: &Path) -> bool {
    let mut refuse = |_: frames::Entry<'_>| Err(io::Error::other("there is an entry"));
    File::open(path).and_then(|file| frames::read(file, 0, &mut refuse)).is_ok()
}

/// Notes in `txn` up to where the database has the logs; None: it needs none of them.
pub(crate) fn note(txn: &WriteTransaction, position: Option<Position>) -> Result<(), redb::Error> {
    let mut table = txn.open_table(POSITION)?;
    match position {
        Some(at) => table.insert(KEY, (at.number, at.offset)).map(drop)?,
        None => table.remove(KEY).map(drop)?,
    }
    Ok(())
}

fn noted(db: &Database) -> Result<Option<Position>, redb::Error> {
    let table = match db.begin_read()?.open_table(POSITION) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let found = table.get(KEY)?.map(|found| found.value());
    Ok(found.map(|(number, offset)| Position { number, offset }))
}

/// Brings the database up to the end of its logs, durably. Returns how many entries it took.
///
/// # Errors
/// DataLoss when a log that it needs is missing, with nothing changed; the I/O error.
pub(crate) fn replay(db: &Database, path: &Path) -> Result<u64> {
    let Some(from) = noted(db).map_err(|e| storage_error(path, e))? else { return Ok(0) };
    let logs = Copies::find(path).context(|| "looking for logs")?.logs;
    if !logs.contains(&from.number) {
        let missing = log_path(path, from.number);
        return Err(Error::data_loss(format!("log {}: the file is missing", missing.display())));
    }
    let mut filler = Filler::new(db, path);
    for number in logs.into_iter().filter(|n| *n >= from.number) {
        let offset = if number == from.number { from.offset } else { 0 };
        filler.apply(&log_path(path, number), offset)?;
    }
    filler.flush()?;
    Ok(filler.entries())
}
