//! The store suite, over every implementation, and what only redb can show.

mod crashes;
mod damage;
mod faults;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use gantry_errdefs::{Error, Result};
use proptest::prelude::*;

pub(crate) use faults::{Faults, FaultyFile};

use crate::{Key, KvRead, MemStore, Options, RedbStore, Store, StoreExt, prefix_end};

fn each_store(check: impl Fn(&dyn Store)) {
    check(&MemStore::new());
    let dir = tempfile::tempdir().unwrap();
    check(&RedbStore::open(dir.path().join("db"), &Options::default()).unwrap());
}

fn put(store: &dyn Store, key: &str, value: &str) {
    let (key, value) = (Key::new().str(key), value.to_owned());
    store
        .update_blocking(move |txn| {
            txn.put(&key, value);
            Ok(())
        })
        .unwrap();
}

fn value(read: &dyn KvRead, key: &str) -> Option<String> {
    read.get(&Key::new().str(key)).unwrap().map(|v| String::from_utf8(v).unwrap())
}

#[test]
fn snapshots_do_not_move() {
    each_store(|store| {
        put(store, "a", "1");
        let before = store.view().unwrap();
        put(store, "a", "2");
        assert_eq!(value(&before, "a").as_deref(), Some("1"));
        assert_eq!(value(&store.view().unwrap(), "a").as_deref(), Some("2"));
    });
}

#[test]
fn a_failed_closure_leaves_nothing_and_harms_nobody() {
    each_store(|store| {
        let err = store
            .update_blocking(|txn| -> Result<()> {
                txn.put(b"x", *b"1");
                Err(Error::aborted("changed my mind"))
            })
            .unwrap_err();
        assert!(err.is_aborted());
        assert!(!store.view().unwrap().has(b"x").unwrap());
        put(store, "after", "ok");
        assert_eq!(value(&store.view().unwrap(), "after").as_deref(), Some("ok"));
    });
}

#[test]
fn a_panicking_closure_is_an_internal_error() {
    each_store(|store| {
        let err = store.update_blocking(|_| -> Result<()> { panic!("boom") }).unwrap_err();
        assert!(err.is_internal() && err.message().contains("boom"), "{err}");
        put(store, "after", "ok");
    });
}

#[test]
fn hooks_run_once_after_the_commit_in_order() {
    each_store(|store| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        for n in 0..3 {
            let seen = Arc::clone(&seen);
            let result = store.update_blocking(move |txn| {
                txn.put(b"n", [n]);
                txn.after_commit(move || seen.lock().unwrap().push(n));
                if n == 1 { Err(Error::aborted("no")) } else { Ok(()) }
            });
            assert_eq!(result.is_ok(), n != 1);
        }
        assert_eq!(*seen.lock().unwrap(), [0, 2]);
    });
}

#[test]
fn a_transaction_reads_its_own_writes_in_order() {
    each_store(|store| {
        for key in ["b", "d", "f"] {
            put(store, key, "old");
        }
        let seen = store
            .update_blocking(|txn| {
                txn.put(&Key::new().str("a"), *b"new");
                txn.put(&Key::new().str("d"), *b"new");
                txn.delete(&Key::new().str("f"));
                txn.put(&Key::new().str("g"), *b"new");
                let all = txn.range(b"")?;
                let from_d = txn.first(&Key::new().str("d"))?;
                assert_eq!(from_d.unwrap().1, b"new");
                let mut count = 0;
                txn.scan(b"", &mut |_, _| {
                    count += 1;
                    Ok(if count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
                assert_eq!(count, 2);
                Ok(all)
            })
            .unwrap();
        let seen: Vec<_> = seen
            .into_iter()
            .map(|(k, v)| (Key::str_parts(&k).unwrap().remove(0), String::from_utf8(v).unwrap()))
            .collect();
        let want = [("a", "new"), ("b", "old"), ("d", "new"), ("g", "new")];
        assert_eq!(seen, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
    });
}

#[test]
fn delete_prefix_spares_the_neighbours() {
    each_store(|store| {
        let keys = [("a", "1"), ("a", "2"), ("ab", "1"), ("b", "1")];
        store
            .update_blocking(move |txn| {
                for (x, y) in keys {
                    txn.put(&Key::new().str(x).str(y), *b"");
                }
                txn.put(&Key::new().str("a").str("3"), *b"");
                assert_eq!(txn.delete_prefix(&Key::new().str("a"))?, 3);
                Ok(())
            })
            .unwrap();
        assert_eq!(store.view().unwrap().range(b"").unwrap().len(), 2);
    });
}

#[test]
fn redb_keeps_acknowledged_writes_over_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    put(&store, "a", "1");
    let busy = RedbStore::open(&path, &Options::default()).unwrap_err();
    assert!(busy.is_unavailable(), "{busy}");
    drop(store);
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    assert_eq!(value(&store.view().unwrap(), "a").as_deref(), Some("1"));
}

#[test]
fn a_store_that_is_closed_says_so_and_the_file_is_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let options = Options::default();
    // redb's own mark, in the header of the (pinned) format.
    let in_good_order = || {
        const FLAGS: usize = 9;
        const RECOVERY_REQUIRED: u8 = 2;
        std::fs::read(&path).unwrap()[FLAGS] & RECOVERY_REQUIRED == 0
    };
    for round in 0..3 {
        let store = RedbStore::open(&path, &options).unwrap();
        put(&store, "round", &round.to_string());
        let held = store.view().unwrap();
        let shared: Arc<dyn Store> = Arc::new(store);
        let store = RedbStore::open(&path, &options).unwrap_err();
        assert!(store.is_unavailable(), "one at a time: {store}");
        assert_eq!(value(&held, "round"), Some(round.to_string()));
        assert!(!in_good_order());
        drop(held);
        drop(shared);
        assert!(in_good_order());
    }
    let store = RedbStore::open(&path, &options).unwrap();
    assert_eq!(value(&store.view().unwrap(), "round").as_deref(), Some("2"));
    store.close();
    store.close();
    assert!(store.view().unwrap_err().is_unavailable());
    let late = store.update_blocking(|_| Ok(())).unwrap_err();
    assert!(late.is_unavailable(), "{late}");
    assert!(in_good_order());
}

#[test]
fn redb_says_data_loss_for_a_file_that_is_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let err = RedbStore::open(&path, &Options::default()).unwrap_err();
    assert!(err.is_data_loss(), "{err}");
    assert!(err.message().contains(path.to_str().unwrap()), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_commits_and_lose_nothing() {
    const WRITERS: usize = 16;
    const WRITES: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RedbStore::open(dir.path().join("db"), &Options::default()).unwrap());
    let hooks = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (store, hooks) = (Arc::clone(&store), Arc::clone(&hooks));
            tokio::spawn(async move {
                for _ in 0..WRITES {
                    let hooks = Arc::clone(&hooks);
                    store.update(move |txn| add_one(txn, hooks)).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let total = store.view().unwrap().get(b"count").unwrap().unwrap();
    assert_eq!(u64::from_be_bytes(total.try_into().unwrap()), (WRITERS * WRITES) as u64);
    assert_eq!(hooks.load(Ordering::Relaxed), WRITERS * WRITES);
}

fn add_one(txn: &mut crate::Txn<'_>, hooks: Arc<AtomicUsize>) -> Result<()> {
    let count = txn.get(b"count")?.map_or(0, |v| u64::from_be_bytes(v.try_into().unwrap()));
    txn.put(b"count", (count + 1).to_be_bytes());
    txn.after_commit(move || {
        hooks.fetch_add(1, Ordering::Relaxed);
    });
    Ok(())
}

#[tokio::test]
async fn relaxed_writes_are_seen_at_once_and_durable_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let faults = Arc::new(Faults::default());
    let store = Arc::new(faults.open(&path, false));
    let put = |key: &'static [u8]| {
        let store = Arc::clone(&store);
        async move {
            store
                .update(move |txn| {
                    txn.put(key, *b"1");
                    Ok(())
                })
                .await
        }
    };
    let after_a_power_cut = |key: &[u8]| {
        let elsewhere = tempfile::tempdir().unwrap();
        let copy = faults.cut_power(&path, elsewhere.path(), 0);
        let store = RedbStore::open(&copy, &Options::default()).unwrap();
        store.view().unwrap().has(key).unwrap()
    };
    crate::relaxed(put(b"a")).await.unwrap();
    crate::relaxed(async { tokio::spawn(crate::carry(put(b"b"))).await.unwrap() }).await.unwrap();
    assert!(store.view().unwrap().has(b"a").unwrap() && store.view().unwrap().has(b"b").unwrap());
    assert!(!after_a_power_cut(b"a") && !after_a_power_cut(b"b"));
    // Even one that writes nothing.
    store.update(|_| Ok(())).await.unwrap();
    assert!(after_a_power_cut(b"a") && after_a_power_cut(b"b"));
    crate::relaxed(put(b"c")).await.unwrap();
    drop(store);
    assert!(after_a_power_cut(b"c"));
}

#[test]
fn the_file_does_not_grow_with_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = RedbStore::open(&path, &Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut len = 0;
    for n in 0..600_u32 {
        let key = n.to_be_bytes();
        let make = store.update(move |txn| {
            txn.put(&key, vec![1; 2000]);
            Ok(())
        });
        runtime.block_on(crate::relaxed(make)).unwrap();
        store
            .update_blocking(move |txn| {
                txn.delete(&key);
                Ok(())
            })
            .unwrap();
        if n == 100 {
            len = std::fs::metadata(&path).unwrap().len();
        }
    }
    let grown = std::fs::metadata(&path).unwrap().len();
    assert!(grown <= len * 2, "{len} to {grown}");
}

#[test]
fn a_middle_has_keys_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let redb = RedbStore::open(dir.path().join("db"), &Options::default()).unwrap();
    let stores: [&dyn Store; 2] = [&redb, &MemStore::default()];
    for store in stores {
        let middle = || store.view().unwrap().middle(b"k/", Some(b"k0")).unwrap();
        let put = |key: &'static [u8]| {
            store
                .update_blocking(move |txn| {
                    txn.put(key, *b"1");
                    Ok(())
                })
                .unwrap();
        };
        put(b"j/before");
        put(b"k0");
        assert_eq!(middle(), None);
        put(b"k/a");
        assert_eq!(middle(), None);
        put(b"k/a\0");
        assert_eq!(middle().as_deref(), Some(b"k/a\0".as_slice()));
        put(b"k/d");
        assert_eq!(middle().as_deref(), Some(b"k/c".as_slice()));
        let last = store.view().unwrap().last_key(b"k/", Some(b"k0")).unwrap();
        assert_eq!(last.as_deref(), Some(b"k/d".as_slice()));
    }
}

#[test]
fn prefix_ends() {
    assert_eq!(prefix_end(b"a").as_deref(), Some(&b"b"[..]));
    assert_eq!(prefix_end(&[1, 0xff]).as_deref(), Some(&[2][..]));
    assert_eq!(prefix_end(&[0xff]), None);
    assert_eq!(prefix_end(b""), None);
}

#[test]
fn damaged_keys_are_refused() {
    for bad in [&b"a"[..], b"\x01\x00", b"\x01\x03\x00", b"a\x00\x01"] {
        assert!(Key::parts(bad).unwrap_err().is_data_loss(), "{bad:?}");
    }
}

fn encode(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.iter().fold(Key::new(), |key, part| key.bytes(part)).into_bytes()
}

proptest! {
    #[test]
    fn keys_round_trip_and_sort(
        a in prop::collection::vec(prop::collection::vec(0u8..4, 0..4), 0..4),
        b in prop::collection::vec(prop::collection::vec(0u8..4, 0..4), 0..4),
    ) {
        let (ka, kb) = (encode(&a), encode(&b));
        prop_assert_eq!(Key::parts(&ka).unwrap(), a.clone());
        prop_assert_eq!(ka.cmp(&kb), a.cmp(&b));
        prop_assert_eq!(kb.starts_with(&ka), b.starts_with(&a));
    }

    #[test]
    fn a_transaction_is_its_base_with_its_writes(
        base in prop::collection::btree_map(0u8..12, 0u8..9, 0..8),
        writes in prop::collection::btree_map(0u8..12, prop::option::of(0u8..9), 0..8),
        start in 0u8..12, end in prop::option::of(0u8..12),
    ) {
        let store = MemStore::new();
        let first = base.clone();
        store.update_blocking(move |txn| {
            first.iter().for_each(|(k, v)| txn.put(&[*k], [*v]));
            Ok(())
        }).unwrap();
        let mut want: BTreeMap<u8, u8> = base;
        for (key, value) in &writes {
            match value {
                Some(value) => want.insert(*key, *value),
                None => want.remove(key),
            };
        }
        want.retain(|k, _| *k >= start && end.is_none_or(|end| *k < end));
        let got = store.update_blocking(move |txn| {
            for (key, value) in writes {
                match value {
                    Some(value) => txn.put(&[key], [value]),
                    None => txn.delete(&[key]),
                }
            }
            let mut got = BTreeMap::new();
            txn.scan_range(&[start], end.map(|e| [e]).as_ref().map(|e| &e[..]), &mut |k, v| {
                got.insert(k[0], v[0]);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(got)
        }).unwrap();
        prop_assert_eq!(got, want);
    }
}
