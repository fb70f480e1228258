//! The safety copy: everything once more, in a form so plain that it survives what the database
//! file does not.
//!
//! Beside the database `db` lie `db.dump-<n>`, the whole state at one commit, and `db.log-<n>`,
//! the commits since. The log is written after each commit and not synced: a power cut may take
//! its end, but a power cut does not damage the database, which redb keeps whole by itself. What
//! may damage it (a bad disk, a stray write, a bug) leaves these files, and
//! `recover` makes the database anew from them, up to the last commit.
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
use crate::read::{KvRead, Snapshot};

/// Log bytes before another dump at the least; dumps cost a full scan.
const LOG_BYTES_MIN: u64 = 8 << 20;

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

/// Writes the safety copy; lives on the writer thread. Failing to write it is reported and never
/// fails a commit.
pub(crate) struct Copier {
    database: PathBuf,
    /// Number of the current log.
    number: u64,
    /// None after a failed write, until the next dump.
    log: Option<File>,
    log_bytes: u64,
    dump_bytes: u64,
    frame: Frame,
    dumper: Dumper,
}

impl Copier {
    /// Begins a log after those that are there. Only the log of a `fresh` database may have the
    /// number 0, which says that nothing came before it.
    pub(crate) fn open(database: &Path, fresh: bool) -> Result<Self> {
        let copies = Copies::find(database)
            .context(|| format!("database {}: looking for copies", database.display()))?;
        let number = copies.next().max(u64::from(!fresh));
        // Of starts after which nothing was written.
        for n in copies.logs.iter().filter(|n| **n > 0) {
            let path = log_path(database, *n);
            if fs::metadata(&path).is_ok_and(|meta| meta.len() <= MAGIC.len() as u64) {
                remove(&path);
            }
        }
        let log = begin_log(database, number)?;
        Ok(Self {
            database: database.to_owned(),
            number,
            log: Some(log),
            log_bytes: 0,
            dump_bytes: 0,
            frame: Frame::default(),
            dumper: Dumper::start(database)?,
        })
    }

    /// Where the writes of the running commit are noted.
    pub(crate) fn frame(&mut self) -> &mut Frame {
        &mut self.frame
    }

    /// Forgets the noted writes: the commit failed.
    pub(crate) fn forget(&mut self) {
        self.frame.clear(FRAME_KEPT_LEN);
    }

    /// Appends the noted writes to the log: their commit is done. `view` gives the state after it.
    pub(crate) fn committed(&mut self, view: impl FnOnce() -> Result<Snapshot>) {
        if let Some(log) = &mut self.log {
            let bytes = self.frame.finish();
            self.log_bytes += bytes.len() as u64;
            let written = gantry_failpoint::hit("store.log").and_then(|()| log.write_all(bytes));
            if let Err(err) = written {
                tracing::error!(path = %self.database.display(), "safety copy stops: {err}");
                self.log = None;
            }
        }
        self.frame.clear(FRAME_KEPT_LEN);
        if let Some(bytes) = self.dumper.finished() {
            self.dump_bytes = bytes;
        }
        if self.log.is_none() || self.log_bytes > LOG_BYTES_MIN.max(self.dump_bytes) {
            self.dump(view);
        }
    }

    /// Has the state of now dumped, and begins the log that follows it.
    pub(crate) fn dump(&mut self, view: impl FnOnce() -> Result<Snapshot>) {
        if self.dumper.busy {
            return;
        }
        let number = self.number + 1;
        let begun = view().and_then(|view| Ok((begin_log(&self.database, number)?, view)));
        match begun {
            Ok((log, view)) => {
                (self.log, self.log_bytes, self.number) = (Some(log), 0, number);
                self.dumper.submit(number, view);
            }
            Err(err) => tracing::error!("safety copy: {err}"),
        }
    }

    /// How long after opening the writer thread calls [`Copier::dump`] for the first time.
    pub(crate) fn first_dump_delay() -> Duration {
        FIRST_DUMP_DELAY
    }
}

fn begin_log(database: &Path, number: u64) -> Result<File> {
    let path = log_path(database, number);
    let what = || path.display().to_string();
    let mut log =
        File::options().write(true).create(true).truncate(true).open(&path).context(what)?;
    log.write_all(MAGIC).context(what)?;
    Ok(log)
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
