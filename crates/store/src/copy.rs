//! Logs and dumps: everything once more, in a form so plain that it survives what the database
//! file does not.
//!
//! Beside the database `db` lie `db.log-<n>`, its commits (see [`crate::log`]), and
//! `db.dump-<n>`, the whole state at the beginning of the log *n*. A power cut takes nothing that
//! was acknowledged: the database goes back to its last checkpoint by itself, and the log has the
//! rest. What may damage the database (a bad disk, a stray write, a bug) leaves these files, and
//! `recover` makes it anew from them, up to the last commit.
//!
//! A dump is made some seconds after opening and whenever the log has outgrown it. The numbers
//! tie them together: state = dump *n*, then logs *n*, *n*+1 and so on.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use gantry_errdefs::{Error, Result, ResultExt};

use crate::frames::{Frame, MAGIC};
use crate::log::{self, Log, Position};
use crate::read::{KvRead, Snapshot};
use crate::redb_store::Options;

/// Log bytes before another dump at the least; dumps cost a full scan.
const LOG_BYTES_MIN: u64 = 8 << 20;

/// Log bytes between two checkpoints at most: an opening after a crash replays no more, in a moment.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// Entries of a dump are gathered to frames of this size.
const DUMP_FRAME_LEN: usize = 64 << 10;

/// Memory a frame keeps between commits.
const FRAME_KEPT_LEN: usize = 64 << 10;

/// How long after opening the first dump is made: start-up has better things to do.
const FIRST_DUMP_DELAY: Duration = Duration::from_secs(5);

/// Which copies there are, by number and in order.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub(crate) dumps: Vec<u64>,
    pub(crate) logs: Vec<u64>,
}

impl Copies {
    pub(crate) fn find(database: &Path) -> io::Result<Self> {
        let mut copies = Self::default();
        let dir = database.parent().filter(|d| !d.as_os_str().is_empty());
        let name = database.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for entry in fs::read_dir(dir.unwrap_or(Path::new(".")))? {
            let entry = entry?.file_name();
            let Some(rest) = entry.to_str().and_then(|e| e.strip_prefix(&name)) else { continue };
            if let Some(n) = rest.strip_prefix(".dump-").and_then(|n| n.parse().ok()) {
                copies.dumps.push(n);
            } else if let Some(n) = rest.strip_prefix(".log-").and_then(|n| n.parse().ok()) {
                copies.logs.push(n);
            }
        }
        copies.dumps.sort_unstable();
        copies.logs.sort_unstable();
        Ok(copies)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.dumps.is_empty() && self.logs.is_empty()
    }

    /// A number above all of them.
    fn next(&self) -> u64 {
        self.dumps.iter().chain(&self.logs).max().map_or(0, |n| n + 1)
    }
}

pub(crate) fn dump_path(database: &Path, n: u64) -> PathBuf {
    beside(database, &format!(".dump-{n}"))
}

pub(crate) fn log_path(database: &Path, n: u64) -> PathBuf {
    beside(database, &format!(".log-{n}"))
}

/// `db` and a suffix.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Writes log and dumps; lives on the writer thread.
pub(crate) struct Copier {
    database: PathBuf,
    options: Options,
    /// Number of the current log.
    number: u64,
    /// None after a failed write, until the next one is begun. Commits are synced by the database
    /// meanwhile.
    log: Option<Log>,
    /// Up to where the log has commits that came about.
    committed: u64,
    log_bytes: u64,
    since_checkpoint: u64,
    dump_bytes: u64,
    frame: Frame,
    dumper: Dumper,
}

impl Copier {
    /// Begins a log after those that are there. Only the log of a `fresh` database may have the
    /// number 0, which says that nothing came before it. The database has to be told of it by a
    /// checkpoint before it is written to.
    pub(crate) fn open(database: &Path, fresh: bool, options: &Options) -> Result<Self> {
        let copies = Copies::find(database)
            .context(|| format!("database {}: looking for copies", database.display()))?;
        let number = copies.next().max(u64::from(!fresh));
        // A full disk does not keep anyone from reading.
        let log = Log::begin(database, number, options)
            .inspect_err(|err| tracing::error!("commits go without a log: {err}"))
            .ok();
        Ok(Self {
            database: database.to_owned(),
            options: options.clone(),
            number,
            committed: log.as_ref().map_or(0, |log| log.position().offset),
            log,
            log_bytes: 0,
            since_checkpoint: 0,
            dump_bytes: 0,
            frame: Frame::default(),
            dumper: Dumper::start(database)?,
        })
    }

    /// Removes the logs of earlier starts after which nothing was written.
    pub(crate) fn tidy(&self) {
        let Ok(copies) = Copies::find(&self.database) else { return };
        for n in copies.logs.into_iter().filter(|n| *n > 0 && *n < self.number) {
            let path = log_path(&self.database, n);
            if log::is_empty(&path) {
                remove(&path);
            }
        }
    }

    /// Where the writes of the running commit are noted.
    pub(crate) fn frame(&mut self) -> &mut Frame {
        &mut self.frame
    }

    /// Forgets the noted writes, which the log may have by now: the commit failed.
    pub(crate) fn forget(&mut self) {
        self.frame.clear(FRAME_KEPT_LEN);
        if self.position().is_some_and(|at| at.offset != self.committed) {
            self.lose_log();
        }
    }

    /// The commit came about.
    pub(crate) fn committed(&mut self) {
        self.committed = self.position().map_or(0, |at| at.offset);
    }

    /// Appends the noted writes to the log, durably if `strict`. False without a log: it is the
    /// database that has to be synced then.
    pub(crate) fn append(&mut self, strict: bool) -> bool {
        let Some(log) = &mut self.log else { return false };
        let bytes = self.frame.finish();
        let written = gantry_failpoint::hit("store.log")
            .and_then(|()| log.append(bytes))
            .and_then(|()| if strict { log.sync() } else { Ok(()) });
        let len = bytes.len() as u64;
        self.log_bytes += len;
        self.since_checkpoint += len;
        self.frame.clear(FRAME_KEPT_LEN);
        self.kept(written)
    }

    /// Makes the log durable. False as of [`Copier::append`].
    pub(crate) fn sync(&mut self) -> bool {
        let Some(log) = &mut self.log else { return false };
        let synced = log.sync();
        self.kept(synced)
    }

    /// Gives up a log that failed.
    fn kept(&mut self, written: io::Result<()>) -> bool {
        let Err(err) = written else { return true };
        tracing::error!(path = %self.database.display(), "log given up: {err}");
        self.lose_log();
        false
    }

    /// Goes on without the log, in which only what came about stays.
    pub(crate) fn lose_log(&mut self) {
        if let Some(log) = self.log.take() {
            log.cut(self.committed);
        }
    }

    /// What a checkpoint of now says in the database.
    pub(crate) fn position(&self) -> Option<Position> {
        self.log.as_ref().map(Log::position)
    }

    /// Whether the log since the last checkpoint has grown long.
    pub(crate) fn checkpoint_is_due(&self) -> bool {
        self.since_checkpoint > CHECKPOINT_BYTES
    }

    /// The database has everything.
    pub(crate) fn checkpointed(&mut self) {
        self.since_checkpoint = 0;
    }

    /// Whether log and dump have to be begun anew, and can be.
    pub(crate) fn is_due(&mut self) -> bool {
        if let Some(bytes) = self.dumper.finished() {
            self.dump_bytes = bytes;
        }
        let outgrown = || self.log_bytes > LOG_BYTES_MIN.max(self.dump_bytes);
        !self.dumper.busy && (self.log.is_none() || outgrown())
    }

    /// Has the state of now dumped, and begins the log that follows it, once `checkpoint` has told
    /// the database.
    pub(crate) fn dump(
        &mut self,
        view: impl FnOnce() -> Result<Snapshot>,
        checkpoint: impl FnOnce(Position) -> Result<()>,
    ) {
        if self.dumper.busy {
            return;
        }
        // No log may have what comes after something that a power cut takes from the one before.
        self.sync();
        let number = self.number + 1;
        let begun = view().and_then(|view| {
            let log = Log::begin(&self.database, number, &self.options)?;
            checkpoint(log.position())?;
            Ok((log, view))
        });
        match begun {
            Ok((log, view)) => {
                if let Some(old) = self.log.replace(log) {
                    old.close();
                }
                (self.log_bytes, self.since_checkpoint, self.number) = (0, 0, number);
                self.committed();
                self.dumper.submit(number, view);
            }
            Err(err) => tracing::error!("safety copy: {err}"),
        }
    }

    /// Ends the log. The database has everything.
    pub(crate) fn close(self) {
        if let Some(log) = self.log {
            log.close();
        }
    }

    /// How long after opening the writer thread calls [`Copier::dump`] for the first time.
    pub(crate) fn first_dump_delay() -> Duration {
        // A test that takes its copies at one moment can't have one made at another.
        if cfg!(test) { Duration::MAX } else { FIRST_DUMP_DELAY }
    }
}

/// Writes dumps on a thread of its own, one at a time.
struct Dumper {
    jobs: Option<SyncSender<(u64, Snapshot)>>,
    done: Receiver<u64>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
}

impl Dumper {
    fn start(database: &Path) -> Result<Self> {
        let (jobs, queue) = sync_channel::<(u64, Snapshot)>(1);
        let (tell, done) = sync_channel(1);
        let database = database.to_owned();
        let thread = std::thread::Builder::new()
            .name("gantry-dump".into())
            .spawn(move || {
                while let Ok((number, view)) = queue.recv() {
                    let bytes = write_dump(&database, number, &view).unwrap_or_else(|err| {
                        tracing::error!(path = %database.display(), "safety copy: {err}");
                        0
                    });
                    if tell.send(bytes).is_err() {
                        return;
                    }
                }
            })
            .context(|| "starting the dump thread")?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread), busy: false })
    }

    fn submit(&mut self, number: u64, view: Snapshot) {
        self.busy = self.jobs.as_ref().is_some_and(|jobs| jobs.try_send((number, view)).is_ok());
    }

    /// The size of the dump that has just ended.
    fn finished(&mut self) -> Option<u64> {
        if !self.busy {
            return None;
        }
        let bytes = self.done.try_recv().ok()?;
        self.busy = false;
        Some(bytes)
    }
}

impl Drop for Dumper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the dump thread panicked");
        }
    }
}

/// Writes the dump `number` of `view`, then removes what it replaces. Returns its size.
pub(crate) fn write_dump(database: &Path, number: u64, view: &Snapshot) -> Result<u64> {
    let half = beside(database, ".dump-new");
    let what = || half.display().to_string();
    let mut file = BufWriter::new(File::create(&half).context(what)?);
    file.write_all(MAGIC).context(what)?;
    let mut frame = Frame::default();
    let (mut count, mut bytes) = (0_u64, 0_u64);
    view.scan(b"", &mut |key, value| {
        frame.put(key, value);
        count += 1;
        if frame.len() >= DUMP_FRAME_LEN {
            bytes += frame.len() as u64;
            file.write_all(frame.finish()).context(what)?;
            frame.clear(FRAME_KEPT_LEN);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    file.write_all(frame.finish()).context(what)?;
    file.write_all(Frame::end(count).finish()).context(what)?;
    let file = file.into_inner().map_err(|e| Error::io(what(), e.into_error()))?;
    file.sync_all().context(what)?;
    gantry_failpoint::hit("store.dump").context(what)?;
    fs::rename(&half, dump_path(database, number)).context(what)?;
    sync_dir_of(database)?;
    let old = Copies::find(database).context(what)?;
    for n in old.dumps.into_iter().filter(|n| *n < number) {
        remove(&dump_path(database, n));
    }
    for n in old.logs.into_iter().filter(|n| *n < number) {
        remove(&log_path(database, n));
    }
    Ok(bytes + frame.len() as u64)
}

/// Syncs the directory a file is in.
pub(crate) fn sync_dir_of(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .context(|| format!("{}: syncing its directory", path.display()))
}

fn remove(path: &Path) {
    if let Err(err) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), "safety copy: {err}");
    }
}
