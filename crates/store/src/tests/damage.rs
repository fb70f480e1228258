//! Databases that are cut, flipped, overwritten or lost.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::copy::{self, dump_path, log_path};
use crate::frames::crc32c;
use crate::{KvRead, Options, RedbStore, Store, StoreExt};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

const COMMITS: u32 = 24;

/// A database of some history, closed, and its state.
fn make(dir: &Path) -> (PathBuf, State) {
    let path = dir.join("db");
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    let mut state = State::new();
    for n in 0..COMMITS {
        let key = format!("key {}", n * 7 % 41).into_bytes();
        let value = vec![n as u8; 300 * (n as usize % 9)];
        let gone = format!("key {}", n * 3 % 41).into_bytes();
        state.insert(key.clone(), value.clone());
        state.remove(&gone);
        store
            .update_blocking(move |txn| {
                txn.put(&key, value);
                txn.delete(&gone);
                Ok(())
            })
            .unwrap();
    }
    drop(store);
    (path, state)
}

fn state(path: &Path) -> State {
    let store = RedbStore::open(path, &Options::default()).unwrap();
    read(&store)
}

fn read(store: &RedbStore) -> State {
    let mut state = State::new();
    let view = store.view().unwrap();
    view.scan(b"", &mut |key, value| {
        state.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    state
}

/// The database with a dump and a commit after it.
fn make_with_dump(dir: &Path) -> (PathBuf, State) {
    let (path, state) = make(dir);
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    let number = copy::Copies::find(&path).unwrap().logs.pop().unwrap();
    copy::write_dump(&path, number, &store.view().unwrap()).unwrap();
    let mut state = state;
    state.insert(b"late".to_vec(), b"yes".to_vec());
    store
        .update_blocking(|txn| {
            txn.put(b"late", *b"yes");
            Ok(())
        })
        .unwrap();
    (path, state)
}

#[derive(Clone, Debug)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Cut { at: usize },
    Overwrite { at: usize, len: usize, byte: u8 },
    Lose,
}

impl Damage {
    fn apply(&self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match *self {
            Self::Flip { at, bit } => {
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
            }
            Self::Cut { at } => bytes.truncate(at % bytes.len()),
            Self::Overwrite { at, len, byte } => {
                let at = at % bytes.len();
                let end = bytes.len().min(at + len);
                bytes[at..end].fill(byte);
            }
            Self::Lose => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    // The first pages hold what everything hangs on: half of the blows go there.
    let at = || prop_oneof![0..20_000_usize, any::<usize>()];
    prop_oneof![
        5 => (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        3 => at().prop_map(|at| Damage::Cut { at }),
        3 => (at(), 1..9000_usize, any::<u8>())
            .prop_map(|(at, len, byte)| Damage::Overwrite { at, len, byte }),
        1 => Just(Damage::Lose),
    ]
}

/// Cases of each property; `GANTRY_STORE_DAMAGE_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("GANTRY_STORE_DAMAGE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 50, ..Default::default() })]

    #[test]
    fn a_damaged_database_opens_with_everything_acknowledged(
        damage in prop::collection::vec(damage(), 1..3), dumped in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, want) =
            if dumped { make_with_dump(dir.path()) } else { make(dir.path()) };
        for damage in damage {
            if path.exists() && fs::metadata(&path).unwrap().len() > 0 {
                damage.apply(&path);
            }
        }
        prop_assert_eq!(state(&path), want.clone());
        // And it is a database like any other from then on.
        let store = RedbStore::open(&path, &Options::default()).unwrap();
        store.update_blocking(|txn| {
            txn.put(b"after", *b"1");
            Ok(())
        }).unwrap();
        drop(store);
        let mut want = want;
        want.insert(b"after".to_vec(), b"1".to_vec());
        Damage::Lose.apply(&path);
        prop_assert_eq!(state(&path), want);
    }

    #[test]
    fn damage_everywhere_never_panics(
        db in damage(), log in damage(), dump in damage(), dumped in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = if dumped { make_with_dump(dir.path()) } else { make(dir.path()) };
        let copies = copy::Copies::find(&path).unwrap();
        db.apply(&path);
        copies.logs.iter().for_each(|n| log.apply(&log_path(&path, *n)));
        copies.dumps.iter().for_each(|n| dump.apply(&dump_path(&path, *n)));
        match RedbStore::open(&path, &Options::default()) {
            Ok(store) => drop(read(&store)),
            Err(err) => prop_assert!(err.is_data_loss(), "{}", err),
        }
    }
}

#[test]
fn a_log_that_is_cut_gives_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    for n in 0..3_u8 {
        let put = move |txn: &mut crate::Txn<'_>| {
            txn.put(&[n], [n]);
            Ok(())
        };
        store.update_blocking(put).unwrap();
    }
    drop(store);
    let log = log_path(&path, 0);
    let len = fs::metadata(&log).unwrap().len();
    fs::File::options().write(true).open(&log).unwrap().set_len(len - 1).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(state(&path).len(), 2);
}

#[test]
fn failed_closures_are_not_in_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    let failed = store.update_blocking(|txn| -> gantry_errdefs::Result<()> {
        txn.put(b"no", *b"no");
        Err(gantry_errdefs::Error::aborted("no"))
    });
    failed.unwrap_err();
    store
        .update_blocking(|txn| {
            txn.put(b"yes", *b"yes");
            Ok(())
        })
        .unwrap();
    drop(store);
    fs::remove_file(&path).unwrap();
    assert_eq!(state(&path), State::from([(b"yes".to_vec(), b"yes".to_vec())]));
}

#[test]
fn a_database_without_a_copy_is_a_typed_error() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = make(dir.path());
    fs::remove_file(log_path(&path, 0)).unwrap();
    fs::write(&path, b"no database").unwrap();
    let err = RedbStore::open(&path, &Options::default()).unwrap_err();
    assert!(err.is_data_loss() && err.message().contains(path.to_str().unwrap()), "{err}");
    // Nothing was thrown away.
    assert_eq!(fs::read(&path).unwrap(), b"no database");
}

#[test]
fn empty_logs_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let (path, want) = make(dir.path());
    for _ in 0..5 {
        assert_eq!(state(&path), want);
    }
    let copies = copy::Copies::find(&path).unwrap();
    assert!(copies.logs.len() <= 2, "{copies:?}");
}

#[test]
fn the_checksum_is_the_known_one() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}
