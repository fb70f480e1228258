//! The embedded key-value database: MVCC snapshots and group-committed writes.
//!
//! One keyspace of byte keys holds every record of the daemon. Callers own disjoint key prefixes,
//! built with [`Key`], and never see the engine below ([`RedbStore`] in the daemon, [`MemStore`]
//! in tests).
//!
//! * **Reading.** [`Store::view`] gives a [`Snapshot`]: the state after the last commit, for as
//!   long as it is held. Readers never wait for writers, writers never wait for readers.
//! * **Writing.** [`StoreExt::update`] takes a closure over a [`Txn`]. Closures of all callers run
//!   one after another on one writer thread; each sees the writes of those before it and is atomic
//!   (an `Err` discards its writes alone). Many closures share one synced commit, and a caller's
//!   future resolves when that commit is durable.
//! * **Durability.** A commit is durable in a log beside the database before anyone is told; the
//!   database file follows at checkpoints. After a crash the log gives what it has not.
//! * **After the commit.** [`Txn::after_commit`] registers work (publishing an event) that runs on
//!   the writer thread once the commit is durable, in commit order, even if the caller has gone.
//!
//! **Invariant:** closures touch memory and the transaction only. No file, no socket, no lock that
//! someone may hold while waiting for the store.
//!
//! ```
//! use gantry_store::{Key, KvRead, MemStore, Store, StoreExt};
//!
//! let store = MemStore::new();
//! let key = Key::new().str("colour").str("sky");
//! store.update_blocking({ let key = key.clone(); move |txn| { txn.put(&key, b"blue"); Ok(()) } })?;
//! assert_eq!(store.view()?.get(&key)?.as_deref(), Some(&b"blue"[..]));
//! # Ok::<(), gantry_errdefs::Error>(())
//! ```
#![forbid(unsafe_code)]

mod commit;
mod copy;
mod frames;
mod key;
mod log;
mod mem;
mod read;
mod recover;
mod redb_store;
mod txn;
mod work;

#[cfg(test)]
mod tests;

pub use key::Key;
pub use mem::MemStore;
pub use read::{KvRead, Pair, Snapshot, Visit, prefix_end};
pub use redb_store::{CACHE_DEFAULT_BYTES, Options, RedbStore};
pub use txn::Txn;
pub use work::{Job, Store, StoreExt, carry, relaxed, strict};
