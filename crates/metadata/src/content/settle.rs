//! Small blobs are durable by their record's own commit.
//!
//! The backend leaves the syncs of a small blob's file to us: its bytes go into the database in the
//! transaction that records it, so that many blobs share one sync. Soon after, in the background,
//! the files are synced together and the bytes taken out again. After a power cut in between,
//! [`restore`] makes the files from the bytes before anyone looks for them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_core::Digest;
use gantry_errdefs::{Result, ResultExt};
use gantry_store::{Key, KvRead, relaxed};
use tokio::sync::Notify;

use crate::db::{Db, Tx};
use crate::keys::{self, Kind};

/// How long after a commit its files are synced. By then the kernel has written them by itself, and
/// the sync has little left to do.
const SETTLE_DELAY: Duration = Duration::from_secs(40);

/// Bytes in the database that are settled at once: they are read and compared at a start after a
/// crash.
const KEPT_BYTES_MAX: u64 = 8 << 20;

/// Pause after a failed try.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// Blobs settled at once; bounds the names held in memory.
const SETTLED_AT_ONCE_MAX: usize = 4096;

/// Blobs restored at once; bounds the bytes held in memory.
const RESTORED_AT_ONCE_MAX: usize = 256;

/// Keeps the bytes of a blob in the transaction that records it.
pub(super) fn keep(tx: &mut Tx<'_, '_>, digest: &Digest, number: u64, bytes: &[u8]) {
    tx.txn.put(&keys::blob_bytes(digest.as_str(), number), bytes);
    let (unsettled, len) = (tx.unsettled(), bytes.len() as u64);
    tx.txn.after_commit(move || unsettled.add(len));
}

/// What is kept and not settled.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    bytes: AtomicU64,
    some: Notify,
    much: Notify,
}

impl Unsettled {
    fn add(&self, len: u64) {
        self.some.notify_one();
        if self.bytes.fetch_add(len, Ordering::AcqRel) + len >= KEPT_BYTES_MAX {
            self.much.notify_one();
        }
    }
}

/// Settles what is kept from now on, until the store is dropped. What was kept before has been
/// [restored](restore).
pub(crate) fn start(db: &Db) {
    let store = Arc::downgrade(&db.shared);
    let unsettled = Arc::clone(&db.shared.unsettled);
    tokio::spawn(async move {
        loop {
            unsettled.some.notified().await;
            // Much or little time: either is a reason to begin.
            let _ = tokio::time::timeout(SETTLE_DELAY, unsettled.much.notified()).await;
            unsettled.bytes.store(0, Ordering::Release);
            let Some(shared) = store.upgrade() else { return };
            if let Err(err) = settle(&Db { shared }).await {
                tracing::error!("small blobs stay in the database: {err}");
                tokio::time::sleep(RETRY_DELAY).await;
                unsettled.some.notify_one();
            }
        }
    });
}

/// Makes the files durable of all blobs whose bytes are kept, and drops the bytes.
///
/// # Errors
/// Those of the backend and of the database; what is not settled is kept.
pub(crate) async fn settle(db: &Db) -> Result<()> {
    loop {
        let kept = kept(&db.view()?, SETTLED_AT_ONCE_MAX)?;
        if kept.is_empty() {
            return Ok(());
        }
        let digests: Vec<Digest> = kept.iter().map(|(_, digest)| digest.clone()).collect();
        db.shared.content.settle(&digests).await?;
        // Not worth a sync: bytes that come back are settled once more.
        relaxed(db.write(move |tx| {
            kept.iter().for_each(|(key, _)| tx.txn.delete(key));
            Ok(())
        }))
        .await?;
    }
}

/// Makes every blob whose bytes are kept durably be there. Called before the store is used.
///
/// # Errors
/// Those of the backend and of the database.
pub(crate) async fn restore(db: &Db) -> Result<()> {
    let view = db.view()?;
    let all = kept(&view, usize::MAX)?;
    for batch in all.chunks(RESTORED_AT_ONCE_MAX) {
        let mut blobs = Vec::new();
        for (key, digest) in batch {
            // Of one that was deleted since, the bytes are of no use.
            let held = view.first(&keys::all(Kind::BlobNamespace).str(digest.as_str()))?.is_some();
            if held && let Some(bytes) = view.get(key)? {
                blobs.push((digest.clone(), bytes.into()));
            }
        }
        let restored = db.shared.content.restore(blobs).await;
        restored.context(|| "bringing small blobs back")?;
        let done: Vec<Key> = batch.iter().map(|(key, _)| key.clone()).collect();
        db.write(move |tx| {
            done.iter().for_each(|key| tx.txn.delete(key));
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The keys of kept bytes and their blobs, at most `count_max`.
fn kept(view: &impl KvRead, count_max: usize) -> Result<Vec<(Key, Digest)>> {
    let mut found = Vec::new();
    view.scan(&keys::all(Kind::BlobBytes), &mut |key, _| {
        let [digest, number] = keys::parts(key)?;
        let key = keys::all(Kind::BlobBytes).str(&digest).str(&number);
        found.push((key, crate::records::stored_digest(&digest)?));
        Ok(if found.len() < count_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}
