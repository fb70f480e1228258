//! What a crash or a power cut leaves, at any moment.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;

use super::Faults;
use crate::copy::{Copies, log_path};
use crate::{KvRead, Options, RedbStore, Store, StoreExt};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn state(store: &RedbStore) -> State {
    let mut state = State::new();
    let mut note = |key: &[u8], value: &[u8]| {
        state.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    };
    store.view().unwrap().scan(b"", &mut note).unwrap();
    state
}

fn set(store: &RedbStore, key: u8, value: Option<Vec<u8>>, relaxed: bool) {
    let write = store.update(move |txn| {
        match value {
            Some(value) => txn.put(&[key], value),
            None => txn.delete(&[key]),
        }
        Ok(())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    if relaxed {
        runtime.block_on(crate::relaxed(write)).unwrap();
    } else {
        runtime.block_on(write).unwrap();
    }
}

#[derive(Clone, Debug)]
struct Write {
    key: u8,
    value: Option<Vec<u8>>,
    relaxed: bool,
    /// Power is cut after it, when so many bytes of what is not synced have reached the disk.
    cut: Option<u64>,
}

fn write() -> impl Strategy<Value = Write> {
    let value = proptest::option::weighted(
        0.8,
        (any::<u8>(), 0..3000_usize).prop_map(|(byte, len)| vec![byte; len]),
    );
    let cut = proptest::option::weighted(0.2, 0..6000_u64);
    (0..12_u8, value, proptest::bool::weighted(0.3), cut)
        .prop_map(|(key, value, relaxed, cut)| Write { key, value, relaxed, cut })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..Default::default() })]

    /// The state after a cut is that after some commit, not before the last durable one.
    #[test]
    fn power_cuts_take_nothing_that_was_durable(
        writes in prop::collection::vec(write(), 1..40),
        no_sync in proptest::bool::weighted(0.3),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let faults = Arc::new(Faults::default());
        let store = faults.open(&path, no_sync);
        // States that may be found: the last durable one and those after it.
        let mut may_be = vec![State::new()];
        for Write { key, value, relaxed, cut } in writes {
            set(&store, key, value.clone(), relaxed);
            let mut now = may_be.last().unwrap().clone();
            match value {
                Some(value) => now.insert(vec![key], value),
                None => now.remove([key].as_slice()),
            };
            if !relaxed && !no_sync {
                may_be.clear();
            }
            may_be.push(now);
            if let Some(more) = cut {
                let elsewhere = tempfile::tempdir().unwrap();
                let copy = faults.cut_power(&path, elsewhere.path(), more);
                let found = state(&RedbStore::open(&copy, &Options::default()).unwrap());
                prop_assert!(may_be.contains(&found), "{} keys", found.len());
                // And once more, with nothing to replay.
                let again = state(&RedbStore::open(&copy, &Options::default()).unwrap());
                prop_assert_eq!(found, again);
            }
        }
    }
}

/// Without syncs a cut leaves the state after some commit as well, over checkpoints and new logs.
#[test]
fn without_syncs_the_last_commits_are_lost_and_nothing_else() {
    const COMMITS: u8 = 120;
    const VALUE_LEN: usize = 120_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = faults.open(&path, true);
    let mut states = vec![state(&store)];
    let mut lost_some = false;
    for n in 0..COMMITS {
        set(&store, n % 7, Some(vec![n; VALUE_LEN]), false);
        states.push(state(&store));
        if n % 10 != 9 {
            continue;
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let copy = faults.cut_power(&path, elsewhere.path(), u64::from(n) * 10_000);
        let found = state(&RedbStore::open(&copy, &Options::default()).unwrap());
        assert!(states.contains(&found), "{n}: {} keys", found.len());
        lost_some |= states.last() != Some(&found);
    }
    assert!(lost_some, "it synced");
    drop(store);
    assert_eq!(states.last(), Some(&state(&RedbStore::open(&path, &Options::default()).unwrap())));
}

/// More than a log holds between two checkpoints, and more than one that is not begun anew.
#[test]
fn checkpoints_keep_what_is_replayed_small() {
    const COMMITS: u8 = 100;
    const VALUE_LEN: usize = 120_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = faults.open(&path, false);
    for n in 0..COMMITS {
        set(&store, n % 7, Some(vec![n; VALUE_LEN]), false);
    }
    let want = state(&store);
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = faults.cut_power(&path, elsewhere.path(), 0);
    // Everything the logs have before the last checkpoint is not needed.
    let db = redb::Database::open(&copy).unwrap();
    let replayed = crate::log::replay(&db, &copy).unwrap();
    assert!(replayed < u64::from(COMMITS) / 2, "{replayed} entries");
    drop(db);
    assert_eq!(state(&RedbStore::open(&copy, &Options::default()).unwrap()), want);
}

/// A kill leaves what was written, synced or not.
#[test]
fn a_kill_takes_nothing_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = faults.open(&path, false);
    set(&store, 1, Some(b"durable".to_vec()), false);
    set(&store, 2, Some(b"relaxed".to_vec()), true);
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = faults.cut_power(&path, elsewhere.path(), 1 << 20);
    assert_eq!(state(&RedbStore::open(&copy, &Options::default()).unwrap()), state(&store));
}

/// A database that went down needs its log; one that was closed does not.
#[test]
fn a_lost_log_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = faults.open(&path, false);
    set(&store, 1, Some(b"1".to_vec()), false);
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = faults.cut_power(&path, elsewhere.path(), 0);
    for n in Copies::find(&copy).unwrap().logs {
        std::fs::remove_file(log_path(&copy, n)).unwrap();
    }
    let err = RedbStore::open(&copy, &Options::default()).unwrap_err();
    assert!(err.is_data_loss() && err.message().contains(".log-"), "{err}");
    drop(store);
    for n in Copies::find(&path).unwrap().logs {
        std::fs::remove_file(log_path(&path, n)).unwrap();
    }
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    assert_eq!(store.view().unwrap().get(&[1]).unwrap().as_deref(), Some(b"1".as_slice()));
}
