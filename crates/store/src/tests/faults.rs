//! Disks that fail below the database.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::{KvRead, Options, RedbStore, Store, StoreExt};

/// What fails at the moment.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    write: AtomicBool,
    sync: AtomicBool,
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
    drop(RedbStore::open(&path, &Options::default()).unwrap());
    let faults = Arc::new(Faults::default());
    let options = Options { faults: Some(Arc::clone(&faults)), ..Options::default() };
    let store = RedbStore::open(&path, &options).unwrap();
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
