//! Databases that are not what was written.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

use gantry_store::{KvRead as _, Options, RedbStore, Store as _, StoreExt as _};

/// A database file and its safety copy, by file name.
type Files = Vec<(std::ffi::OsString, Vec<u8>)>;

/// Records of the database that is damaged.
const RECORDS: u8 = 40;

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path()).expect("a new database");
        for n in 0..RECORDS {
            let put = move |txn: &mut gantry_store::Txn<'_>| {
                txn.put(&[n], vec![n; usize::from(n) * 20]);
                Ok(())
            };
            store.update_blocking(put).expect("written");
        }
        drop(store);
        let entries = fs::read_dir(dir.path()).expect("listed").flatten();
        entries.map(|e| (e.file_name(), fs::read(e.path()).expect("read"))).collect()
    })
}

fn open(dir: &Path) -> gantry_errdefs::Result<RedbStore> {
    RedbStore::open(dir.join("db"), &Options::default())
}

/// The bytes say where a good database is damaged: it opens, with all there was. The safety copy
/// is damaged too if the first byte is odd: then it opens with what is whole, or says that it is
/// lost. Fewer than six bytes are the database themselves.
pub fn database(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((first, patches)) = data.split_first().filter(|_| data.len() > 5) else {
        fs::write(dir.path().join("db"), data).expect("written");
        let opened = open(dir.path());
        // An empty file is a new database.
        assert!(opened.is_ok() == data.is_empty(), "{opened:?}");
        return;
    };
    let copy_too = first & 1 == 1;
    for (name, bytes) in files() {
        let mut bytes = bytes.clone();
        if name == "db" || copy_too {
            damage(&mut bytes, patches);
        }
        fs::write(dir.path().join(name), bytes).expect("written");
    }
    let store = match open(dir.path()) {
        Ok(store) => store,
        Err(err) => {
            assert!(copy_too && err.is_data_loss(), "{err}");
            return;
        }
    };
    let mut found = Vec::new();
    let view = store.view().expect("it is open");
    view.scan(b"", &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })
    .expect("every page was checked");
    drop(view);
    if !copy_too {
        let all = (0..RECORDS).map(|n| (vec![n], vec![n; usize::from(n) * 20]));
        assert!(found.into_iter().eq(all), "something acknowledged is missing");
    }
    let put = |txn: &mut gantry_store::Txn<'_>| {
        txn.put(b"after", *b"1");
        Ok(())
    };
    store.update_blocking(put).expect("a database like any other");
}

/// Patches of five bytes: three of place, one of value, and what to do.
fn damage(bytes: &mut Vec<u8>, patches: &[u8]) {
    for patch in patches.chunks_exact(5) {
        let Some(last) = bytes.len().checked_sub(1) else { return };
        let place = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
        let place = place.min(last);
        match patch[4] % 8 {
            0 => bytes.truncate(place),
            1 => bytes[place] = patch[3],
            2 => {
                // As a disk loses whole sectors.
                let sector = place / 512 * 512;
                let end = (sector + 512).min(bytes.len());
                bytes[sector..end].fill(patch[3]);
            }
            _ => bytes[place] ^= 1 << (patch[3] % 8),
        }
    }
}
