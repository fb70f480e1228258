//! Disks that fail below the database.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::{KvRead, Options, RedbStore, Store, StoreExt};

/// What fails at the moment.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    write: AtomicBool,
    sync: AtomicBool,
    log: AtomicBool,
    /// What the log has does not get into the database.
    follow: AtomicBool,
    /// Up to where each log was synced.
    synced: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Faults {
    /// Opens the database at `path` on a disk with these faults, made beforehand on a good one.
    pub(crate) fn open(self: &Arc<Self>, path: &Path, no_sync: bool) -> RedbStore {
        drop(RedbStore::open(path, &Options::default()).unwrap());
        let options = Options { faults: Some(Arc::clone(self)), no_sync, ..Options::default() };
        RedbStore::open(path, &options).unwrap()
    }

    pub(crate) fn check_log(faults: Option<&Arc<Self>>) -> io::Result<()> {
        faults.map_or(Ok(()), |faults| {
            check(&faults.write)?;
            check(&faults.sync)?;
            check(&faults.log)
        })
    }

    pub(crate) fn check_follow(faults: Option<&Arc<Self>>) -> io::Result<()> {
        faults.map_or(Ok(()), |faults| check(&faults.follow))
    }

    pub(crate) fn log_synced(faults: Option<&Arc<Self>>, path: &Path, end: u64) {
        if let Some(faults) = faults {
            faults.synced.lock().unwrap().insert(path.to_owned(), end);
        }
    }

    /// Puts the files of the database into `dir` as a power cut would leave them: of each log what
    /// was synced, and `more` bytes. Returns the database's path there.
    pub(crate) fn cut_power(&self, database: &Path, dir: &Path, more: u64) -> PathBuf {
        let copy = dir.join(database.file_name().unwrap());
        std::fs::copy(database, &copy).unwrap();
        for number in crate::copy::Copies::find(database).unwrap().logs {
            let log = crate::copy::log_path(database, number);
            let synced = self.synced.lock().unwrap().get(&log).copied();
            let to = crate::copy::log_path(&copy, number);
            match std::fs::copy(&log, &to) {
                // A dump has just replaced it: the database had all of it before.
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                copied => drop(copied.unwrap()),
            }
            let kept = synced.unwrap_or(crate::frames::MAGIC.len() as u64) + more;
            File::options().write(true).open(&to).unwrap().set_len(kept).unwrap();
        }
        copy
    }
}

/// A file whose writes and syncs fail when told to.
#[derive(Debug)]
pub(crate) struct FaultyFile {
    file: FileBackend,
    faults: Arc<Faults>,
}

impl FaultyFile {
    pub(crate) fn new(file: File, faults: Arc<Faults>) -> Result<Self, redb::DatabaseError> {
        Ok(Self { file: FileBackend::new(file)?, faults })
    }
}

fn check(fault: &AtomicBool) -> io::Result<()> {
    if fault.load(Ordering::Relaxed) {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    Ok(())
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        check(&self.faults.write)?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        check(&self.faults.sync)?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        check(&self.faults.write)?;
        self.file.write(offset, data)
    }
}

fn put(store: &RedbStore, key: &'static str) -> gantry_errdefs::Result<()> {
    store.update_blocking(move |txn| {
        txn.put(key.as_bytes(), *b"1");
        Ok(())
    })
}

#[test]
fn a_disk_that_comes_back_is_written_to_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = faults.open(&path, false);
    put(&store, "before").unwrap();
    for fault in [&faults.write, &faults.sync] {
        let held = store.view().unwrap();
        fault.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            let err = put(&store, "meanwhile").unwrap_err();
            assert!(err.is_unavailable() || err.is_resource_exhausted(), "{err}");
        }
        assert!(held.has(b"before").unwrap());
        drop(held);
        fault.store(false, Ordering::Relaxed);
        put(&store, "after").unwrap();
        let view = store.view().unwrap();
        assert!(view.has(b"before").unwrap() && view.has(b"after").unwrap());
    }
    drop(store);
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    assert!(store.view().unwrap().has(b"after").unwrap());
}

#[test]
fn a_log_that_fails_leaves_it_to_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = faults.open(&path, false);
    put(&store, "before").unwrap();
    faults.log.store(true, Ordering::Relaxed);
    put(&store, "meanwhile").unwrap();
    faults.log.store(false, Ordering::Relaxed);
    put(&store, "after").unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = faults.cut_power(&path, elsewhere.path(), 0);
    let left = RedbStore::open(&copy, &Options::default()).unwrap();
    let view = left.view().unwrap();
    for key in [b"before".as_slice(), b"meanwhile", b"after"] {
        assert!(view.has(key).unwrap(), "{key:?}");
    }
}

/// A write is answered when the log has it: what keeps it from the database then is nobody's loss.
#[test]
fn a_database_that_does_not_follow_gets_it_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = faults.open(&path, false);
    put(&store, "before").unwrap();
    let held = store.view().unwrap();
    faults.follow.store(true, Ordering::Relaxed);
    put(&store, "answered").unwrap();
    assert!(!held.has(b"answered").unwrap());
    drop(held);
    faults.follow.store(false, Ordering::Relaxed);
    put(&store, "after").unwrap();
    let has_all = |store: &RedbStore| {
        let view = store.view().unwrap();
        [b"before".as_slice(), b"answered", b"after"].iter().all(|key| view.has(key).unwrap())
    };
    assert!(has_all(&store));
    drop(store);
    assert!(has_all(&RedbStore::open(&path, &Options::default()).unwrap()));
}

/// Whoever reads after an answer sees what was answered, though the database comes after it.
#[test]
fn what_was_answered_is_read() {
    const WRITES: u32 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path().join("db"), &Options::default()).unwrap();
    for n in 0..WRITES {
        let key = n.to_be_bytes();
        store
            .update_blocking(move |txn| {
                txn.put(&key, key);
                Ok(())
            })
            .unwrap();
        assert!(store.view().unwrap().has(&key).unwrap(), "{n}");
    }
}
