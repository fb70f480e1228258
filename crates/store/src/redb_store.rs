//! The store over redb, and its writer thread.

use std::future::Future;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gantry_errdefs::{Class, Error, Result, ResultExt};
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition,
};
use tokio::sync::mpsc;

use crate::copy::{Copier, Copies, sync_dir_of};
use crate::log::{self, Position};
use crate::read::{KvRead, Snapshot, Visit};
use crate::recover::recover;
use crate::work::{Job, Store};

/// Memory for cached pages unless configured. The daemon's records fit (a container record is
/// about 3 KiB, mostly in the page cache anyway), and idle memory is a promise (SPECIFICATION.md).
pub const CACHE_DEFAULT_BYTES: usize = 4 << 20;

/// Writes waiting for the writer thread. Callers past it wait in `submit`: enough for every
/// request the daemon admits at once, small enough to bound memory.
const WRITE_QUEUE_LEN: usize = 1024;

/// Most closures of one commit: bounds the wait of the first behind the last.
const COMMIT_BATCH_LEN: usize = 256;

/// How long opening the file again waits for snapshots of before to be dropped. Requests hold them
/// for milliseconds; a write fails rather than wait for one that hangs.
const REOPEN_WAIT_MAX: Duration = Duration::from_secs(1);

/// Between two tries of that.
const REOPEN_PAUSE: Duration = Duration::from_millis(10);

/// The one table. Its name is part of the on-disk format.
pub(crate) const RECORDS: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("records");

pub(crate) type Bytes = &'static [u8];

/// How to open a [`RedbStore`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for cached pages, in bytes.
    pub cache_bytes: usize,
    /// Answer writes before they are on disk. A power cut then takes the last of them away, in the
    /// order they came; the death of the process takes none.
    pub no_sync: bool,
    /// Faults to be injected below the database.
    #[cfg(test)]
    pub(crate) faults: Option<Arc<crate::tests::Faults>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: CACHE_DEFAULT_BYTES,
            no_sync: false,
            #[cfg(test)]
            faults: None,
        }
    }
}

/// The database of a daemon: one file, held exclusively while open.
///
/// Dropping it lets the queued writes finish and closes the file, as [`RedbStore::close`] does.
pub struct RedbStore {
    shared: Arc<Shared>,
    /// None once closed. Held for a clone only.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl RedbStore {
    /// Opens the database at `path`, creating it if missing. After an unclean end redb goes back
    /// to its last checkpoint by itself, and the log (`<path>.log-<n>`) gives the commits since.
    /// Every page is checked; a file damaged otherwise is put aside as `<path>.damaged` and made
    /// anew from the last dump (`<path>.dump-<n>`) and the logs, up to the last commit.
    ///
    /// # Errors
    /// DataLoss when the file is damaged and the copy is too, with its path; Unavailable when
    /// another process has it open; the I/O error's class otherwise.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        let (db, fresh) = open_or_recover(path, options)?;
        let mut copier = Copier::open(path, fresh, options)?;
        let shared = Arc::new(Shared {
            db: RwLock::new(Some(db)),
            broken: AtomicBool::new(false),
            latest: Mutex::new(None),
            path: path.to_owned(),
            options: options.clone(),
        });
        match shared.checkpoint(copier.position()) {
            Ok(()) => copier.tidy(),
            Err(err) => {
                tracing::error!(path = %path.display(), "commits go without a log: {err}");
                copier.lose_log();
            }
        }
        let (queue, jobs) = mpsc::channel(WRITE_QUEUE_LEN);
        let writer = std::thread::Builder::new()
            .name("gantry-store".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || write_loop(&shared, jobs, copier)
            })
            .context(|| "starting the database writer thread")?;
        Ok(Self { shared, queue: Mutex::new(Some(queue)), writer: Mutex::new(Some(writer)) })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Lets the queued writes finish and closes the file in good order, whoever still has the
    /// store: from then on it answers Unavailable. Blocks; a second call does nothing.
    ///
    /// A snapshot someone still holds keeps the file open until it is dropped.
    pub fn close(&self) {
        drop(hold(&self.queue).take());
        let Some(writer) = hold(&self.writer).take() else { return };
        if writer.join().is_err() {
            tracing::error!(path = %self.shared.path.display(), "database writer thread panicked");
        }
        hold(&self.shared.latest).take();
        *self.shared.db.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn queue(&self) -> Option<mpsc::Sender<Job>> {
        hold(&self.queue).clone()
    }
}

pub(crate) struct Shared {
    /// None while it is being opened again after an I/O error, and once closed. Written by the
    /// writer thread, which otherwise shares it with readers, and when that has ended.
    pub(crate) db: RwLock<Option<Database>>,
    /// An I/O error happened: redb refuses everything until the file is opened again.
    pub(crate) broken: AtomicBool,
    /// The snapshot of the last commit, once someone asked for it: opening one costs a few
    /// allocations and a lock, and most requests read the same state. Held for moments only, and
    /// while the database follows the log (see `commit`).
    pub(crate) latest: Mutex<Option<Snapshot>>,
    pub(crate) path: PathBuf,
    pub(crate) options: Options,
}

impl Store for RedbStore {
    fn view(&self) -> Result<Snapshot> {
        self.shared.view()
    }

    fn submit(&self, job: Job) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            // A closed queue drops the job, which tells its caller.
            if let Some(queue) = self.queue() {
                let _ = queue.send(job).await;
            }
        })
    }

    fn submit_blocking(&self, job: Job) {
        if let Some(queue) = self.queue() {
            let _ = queue.blocking_send(job);
        }
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.close();
    }
}

pub(crate) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is taken or put whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn failed(&self, err: impl Into<redb::Error>) -> Error {
        let err = err.into();
        if !matches!(err, redb::Error::ValueTooLarge(_)) {
            self.broken.store(true, Ordering::Release);
        }
        storage_error(&self.path, err)
    }

    pub(crate) fn db(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn closed(&self) -> Error {
        Error::unavailable(format!("database {}: closed", self.path.display()))
    }

    /// Makes all commits durable in the database itself, and notes where the log goes on.
    pub(crate) fn checkpoint(&self, position: Option<Position>) -> Result<()> {
        gantry_failpoint::hit("store.checkpoint").context(|| self.path.display().to_string())?;
        let db = self.db();
        let txn = db.as_ref().ok_or_else(|| self.closed())?.begin_write();
        let txn = txn.map_err(|e| self.failed(e))?;
        log::note(&txn, position).map_err(|e| self.failed(e))?;
        txn.commit().map_err(|e| self.failed(e))
    }

    /// Begins a new log and has the state dumped.
    pub(crate) fn dump(&self, copier: &mut Copier) {
        copier.dump(|| self.view(), |position| self.checkpoint(Some(position)));
    }

    /// Opens the file again after an I/O error (a full disk, a device that came back), and brings it
    /// up to the last commit. True when there was something to do.
    ///
    /// # Errors
    /// Why it can't be opened yet; the next batch tries again.
    pub(crate) fn heal(&self) -> Result<bool> {
        if !self.broken.load(Ordering::Acquire) {
            return Ok(false);
        }
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *db = None;
        let started = Instant::now();
        let opened = loop {
            match open_database(&self.path, &self.options) {
                // Snapshots hold the old file's lock until they are dropped.
                Err(err) if err.is_unavailable() && started.elapsed() < REOPEN_WAIT_MAX => {
                    std::thread::sleep(REOPEN_PAUSE);
                }
                opened => break opened?,
            }
        };
        let opened = opened.ok_or_else(|| missing(&self.path))?;
        log::replay(&opened, &self.path)?;
        *db = Some(opened);
        self.broken.store(false, Ordering::Release);
        tracing::warn!(path = %self.path.display(), "opened the database again after an error");
        Ok(true)
    }

    pub(crate) fn view(&self) -> Result<Snapshot> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = &*latest {
            return Ok(snapshot.clone());
        }
        let db = self.db();
        let read = db.as_ref().ok_or_else(|| self.closed())?.begin_read();
        let read = read.map_err(|e| self.failed(e))?;
        let table = read.open_table(RECORDS).map_err(|e| self.failed(e))?;
        let snapshot = Snapshot::new(RedbState(table));
        *latest = Some(snapshot.clone());
        Ok(snapshot)
    }
}

fn write_loop(shared: &Shared, mut jobs: mpsc::Receiver<Job>, mut copier: Copier) {
    let mut batch = Vec::with_capacity(COMMIT_BATCH_LEN);
    let opened = Instant::now();
    let mut dumped = false;
    while jobs.blocking_recv_many(&mut batch, COMMIT_BATCH_LEN) > 0 {
        shared.serve(&mut batch, &mut copier);
        if !dumped && opened.elapsed() > Copier::first_dump_delay() {
            dumped = true;
            shared.dump(&mut copier);
        }
    }
    // From here on the database needs no log.
    match shared.checkpoint(None) {
        Ok(()) => copier.close(),
        Err(err) => tracing::error!(path = %shared.path.display(), "closing the database: {err}"),
    }
}

/// Opens the database as of its last commit, or makes it from its safety copy, or from nothing (and
/// says so).
fn open_or_recover(path: &Path, options: &Options) -> Result<(Database, bool)> {
    match open_whole(path, options) {
        Ok(Some(db)) => return Ok((db, false)),
        Ok(None) if Copies::find(path).is_ok_and(|copies| copies.is_empty()) => {
            return Ok((create_database(path, options)?, true));
        }
        // A copy without its database: that was lost.
        Ok(None) => recover(path, missing(path))?,
        Err(damage) if damage.is_data_loss() => recover(path, damage)?,
        Err(err) => return Err(err),
    }
    Ok((open_whole(path, options)?.ok_or_else(|| missing(path))?, false))
}

/// Opens a database that exists and brings it up to the end of its logs.
fn open_whole(path: &Path, options: &Options) -> Result<Option<Database>> {
    let Some(db) = open_database(path, options)? else { return Ok(None) };
    let replayed = log::replay(&db, path)?;
    if replayed > 0 {
        tracing::info!(path = %path.display(), replayed, "replayed the log after an unclean end");
    }
    Ok(Some(db))
}

fn missing(path: &Path) -> Error {
    Error::data_loss(format!("database {}: the file is missing", path.display()))
}

/// Opens a database that exists; None when there is none. redb may panic over a file that is
/// damaged in a way its checks do not know; that is damage all the same.
fn open_database(path: &Path, options: &Options) -> Result<Option<Database>> {
    let exists = std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0);
    if !exists {
        return Ok(None);
    }
    let opened = std::panic::catch_unwind(|| {
        #[cfg(test)]
        if let Some(faults) = &options.faults {
            let file = std::fs::File::options().read(true).write(true).open(path)?;
            let backend = crate::tests::FaultyFile::new(file, Arc::clone(faults))?;
            return builder(path, options).create_with_backend(backend).map_err(Into::into);
        }
        let db = builder(path, options).set_check_integrity_on_open(true).open(path)?;
        begin(&db)?;
        Ok(db)
    });
    match opened {
        Ok(result) => result.map(Some).map_err(|e| open_error(path, e)),
        Err(_) => Err(Error::data_loss(format!("database {}: damaged", path.display()))),
    }
}

fn create_database(path: &Path, options: &Options) -> Result<Database> {
    let db = builder(path, options).create(path).map_err(|e| open_error(path, e.into()))?;
    begin(&db).map_err(|e| open_error(path, e))?;
    sync_dir_of(path)?;
    Ok(db)
}

fn builder(path: &Path, options: &Options) -> redb::Builder {
    let shown = path.display().to_string();
    let mut builder = Database::builder();
    // Called at every opening, since each checks the file; a slow one is told of.
    builder.set_cache_size(options.cache_bytes).set_repair_callback(move |session| {
        tracing::debug!(path = %shown, progress = session.progress(), "checking the database");
    });
    builder
}

/// Makes the table, so that snapshots can open it.
fn begin(db: &Database) -> Result<(), redb::Error> {
    let has_table = db.begin_read()?.open_table(RECORDS).is_ok();
    if !has_table {
        let txn = db.begin_write()?;
        txn.open_table(RECORDS)?;
        txn.commit()?;
    }
    Ok(())
}

fn open_error(path: &Path, err: redb::Error) -> Error {
    match err {
        redb::Error::DatabaseAlreadyOpen => {
            Error::unavailable(format!("database {}: another process has it open", path.display()))
        }
        // Cut short, or not a redb file at all.
        redb::Error::Io(e)
            if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            Error::data_loss(format!("database {}: {e}", path.display())).with_source(e)
        }
        other => storage_error(path, other),
    }
}

pub(crate) fn storage_error(path: &Path, err: redb::Error) -> Error {
    let class = match &err {
        redb::Error::Io(e) => match Class::of_io(e) {
            // The caller's argument is fine; what we stored is not.
            Class::InvalidArgument => Class::DataLoss,
            Class::Unknown => Class::Unavailable,
            class => class,
        },
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => Class::Unavailable,
        redb::Error::ValueTooLarge(_) => Class::ResourceExhausted,
        _ => Class::DataLoss,
    };
    Error::new(class, format!("database {}: {err}", path.display())).with_source(err)
}

/// The state of a read transaction; the table keeps the transaction alive.
struct RedbState(ReadOnlyTable<Bytes, Bytes>);

/// The state of the running write transaction.
pub(crate) struct WriteState<'a, 'txn>(pub(crate) &'a Table<'txn, Bytes, Bytes>);

fn get(table: &impl ReadableTable<Bytes, Bytes>, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let value = table.get(key).map_err(read_error)?;
    Ok(value.map(|v| v.value().to_vec()))
}

fn scan(
    table: &impl ReadableTable<Bytes, Bytes>,
    start: &[u8],
    end: Option<&[u8]>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    if end.is_some_and(|end| end <= start) {
        return Ok(());
    }
    for pair in range(table, start, end)? {
        let (key, value) = pair.map_err(read_error)?;
        if visit(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

fn range<'a>(
    table: &'a impl ReadableTable<Bytes, Bytes>,
    start: &[u8],
    end: Option<&[u8]>,
) -> Result<redb::Range<'a, Bytes, Bytes>> {
    let pairs = match end {
        Some(end) => table.range(start..end),
        None => table.range(start..),
    };
    pairs.map_err(read_error)
}

fn read_error(err: StorageError) -> Error {
    storage_error(Path::new("records"), err.into())
}

impl KvRead for RedbState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        get(&self.0, key)
    }

    fn scan_range(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        scan(&self.0, start, end, visit)
    }

    fn last_key(&self, start: &[u8], end: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        if end.is_some_and(|end| end <= start) {
            return Ok(None);
        }
        let mut pairs = range(&self.0, start, end)?;
        let last = pairs.next_back().transpose().map_err(read_error)?;
        Ok(last.map(|(key, _)| key.value().to_vec()))
    }
}

impl KvRead for WriteState<'_, '_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        get(self.0, key)
    }

    fn scan_range(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        scan(self.0, start, end, visit)
    }
}
