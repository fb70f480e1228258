//! Deleting in the backends what no record names any more.
//!
//! A record's removal leaves a trash key in the same transaction; it goes when the backend's
//! object is gone. A crash between the two finds the key again, and deleting twice is no error.

use std::sync::Arc;
use std::time::Duration;

use gantry_core::{Digest, deadlines};
use gantry_errdefs::{Error, Result};
use gantry_store::{Key, KvRead};
use tokio::task::JoinSet;

use crate::content::{blob_name, ingest_name};
use crate::db::{Db, detached};
use crate::inflight::Guard;
use crate::keys::{self, Kind};
use crate::snapshots;

/// Deletions in backends at a time. A snapshotter that keeps records syncs one commit for each;
/// together they share them.
const DELETIONS_MAX: usize = 16;

/// Backend objects deleted between two commits that take their trash keys out. Makers of the same
/// blob wait for these.
const TRASH_BATCH_LEN: usize = 32;

/// Longest one deletion in a backend may take before the collector goes on without it. A local
/// one takes milliseconds; a remote snapshotter that hangs must not hold the rest up.
pub(super) const BACKEND_DELETE_MAX: Duration = deadlines::PLUGIN_DELETE;

/// Empties the trash; returns how many objects were deleted. What fails stays for the next run.
pub(super) async fn empty(db: &Db) -> Result<u64> {
    let blobs = names(db, &keys::all(Kind::TrashBlob), |[digest]: [String; 1]| digest)?;
    let mut deleted = 0;
    for batch in blobs.chunks(TRASH_BATCH_LEN) {
        let Some(count) = empty_blobs(db, batch).await? else { break };
        deleted += count;
    }
    let ingests = names(db, &keys::all(Kind::TrashIngest), |[name]: [String; 1]| name)?;
    for batch in ingests.chunks(TRASH_BATCH_LEN) {
        let Some(count) = empty_ingests(db, batch).await? else { break };
        deleted += count;
    }
    // Side by side: one that is slow holds up nothing but the end of this run, and one in
    // another process not even that for long.
    let mut snapshotters = JoinSet::new();
    for name in db.snapshotter_names() {
        let db = db.clone();
        snapshotters.spawn(async move { empty_snapshotter(&db, name).await });
    }
    for done in snapshotters.join_all().await {
        deleted += done?;
    }
    Ok(deleted)
}

/// Empties the trash of one snapshotter. Who does not answer in another process is left to it in
/// the background, and not asked again before that has ended.
async fn empty_snapshotter(db: &Db, snapshotter: String) -> Result<u64> {
    let foreign = db.shared.snapshotters[&snapshotter].is_foreign();
    let name = format!("emptying {snapshotter}");
    let Some(alone) = db.shared.inflight.try_exclusive(&name) else { return Ok(0) };
    let work = {
        let (db, snapshotter) = (db.clone(), snapshotter.clone());
        detached(async move {
            let _alone = alone;
            empty_snapshots(&db, &snapshotter).await
        })
    };
    if !foreign {
        return work.await;
    }
    tokio::time::timeout(deadlines::PLUGIN_COLLECT, work).await.unwrap_or_else(|_| {
        tracing::warn!(snapshotter, "does not answer: its trash is emptied without the collector");
        Ok(0)
    })
}

/// None when the backend does not answer: it would not for the others either.
async fn empty_blobs(db: &Db, digests: &[String]) -> Result<Option<u64>> {
    let mut tasks = JoinSet::new();
    for digest in digests {
        let Some(guard) = db.shared.inflight.try_exclusive(&blob_name(digest)) else { continue };
        let (db, digest) = (db.clone(), digest.clone());
        tasks.spawn(async move {
            let result = delete_blob(&db, &digest).await;
            (digest, guard, result)
        });
    }
    let (mut done, mut hangs) = (Vec::new(), false);
    for (digest, guard, result) in tasks.join_all().await {
        match result {
            Ok(()) => done.push((keys::all(Kind::TrashBlob).str(&digest), guard)),
            Err(err) => {
                hangs |= err.is_deadline_exceeded();
                tracing::warn!(digest, "will be deleted later: {err}");
            }
        }
    }
    let count = take_out(db, done).await?;
    Ok((!hangs).then_some(count))
}

/// Deletes a blob that no record names. The caller has it exclusively.
async fn delete_blob(db: &Db, digest: &str) -> Result<()> {
    if db.view()?.first(&keys::all(Kind::BlobNamespace).str(digest))?.is_some() {
        return Ok(());
    }
    let digest: Digest = digest.parse()?;
    let content = Arc::clone(&db.shared.content);
    let text = format!("blob {digest}");
    gone(bounded(&text, async move { content.delete(&digest).await }).await)
}

/// Deletes a blob unless a record names it, for a caller that has its name exclusively.
pub(crate) async fn discard_held(db: &Db, digest: &Digest) -> Result<()> {
    delete_blob(db, digest.as_str()).await
}

/// Deletes a blob unless a record names it or someone is about to make one.
pub(super) async fn discard_blob(db: &Db, digest: &Digest) -> Result<()> {
    let name = blob_name(digest.as_str());
    let Some(_guard) = db.shared.inflight.try_exclusive(&name) else { return Ok(()) };
    delete_blob(db, digest.as_str()).await
}

/// None when the backend does not answer.
async fn empty_ingests(db: &Db, backend_refs: &[String]) -> Result<Option<u64>> {
    let (mut done, mut hangs) = (Vec::new(), false);
    for backend_ref in backend_refs {
        let name = ingest_name(backend_ref);
        let Some(guard) = db.shared.inflight.try_exclusive(&name) else { continue };
        match gone(abort_ingest(db, backend_ref).await) {
            Ok(()) => done.push((keys::all(Kind::TrashIngest).str(backend_ref), guard)),
            Err(err) => {
                tracing::warn!(backend_ref, "dropping an ingest, will be tried again: {err}");
                hangs = err.is_deadline_exceeded();
                if hangs {
                    break;
                }
            }
        }
    }
    let count = take_out(db, done).await?;
    Ok((!hangs).then_some(count))
}

/// Drops an ingest in the backend.
pub(crate) async fn abort_ingest(db: &Db, backend_ref: &str) -> Result<()> {
    let content = Arc::clone(&db.shared.content);
    let text = format!("ingest {backend_ref:?}");
    let backend_ref = backend_ref.to_owned();
    bounded(&text, async move { content.abort(&backend_ref).await }).await
}

async fn empty_snapshots(db: &Db, snapshotter: &str) -> Result<u64> {
    let trash = keys::all(Kind::TrashSnapshot).str(snapshotter);
    let keys_left = names(db, &trash, |[_, key]: [String; 2]| key)?;
    if keys_left.is_empty() {
        return Ok(0);
    }
    let mut deleted = 0;
    let removed = remove_snapshots(db, snapshotter, keys_left).await;
    for batch in removed.chunks(TRASH_BATCH_LEN) {
        let done: Vec<Key> = batch.iter().map(|key| trash.clone().str(key)).collect();
        deleted += done.len() as u64;
        db.write(move |tx| {
            done.iter().for_each(|key| tx.txn.delete(key));
            Ok(())
        })
        .await?;
    }
    if deleted > 0 {
        let backend = Arc::clone(&db.shared.snapshotters[snapshotter]);
        let text = format!("cleanup of snapshotter {snapshotter}");
        match bounded(&text, async move { backend.cleanup().await }).await {
            Err(err) if !err.is_unimplemented() => tracing::warn!(snapshotter, "{err}"),
            _ => {}
        }
    }
    Ok(deleted)
}

/// Removes backend snapshots that no record names, children before parents; returns those that
/// are gone. Backend keys are never used again, so nobody can come to need them.
pub(crate) async fn remove_snapshots(
    db: &Db,
    snapshotter: &str,
    mut backend_keys: Vec<String>,
) -> Vec<String> {
    // A child was made after its parent was committed, so it has the greater number.
    backend_keys.sort_by_key(|key| std::cmp::Reverse(number(key)));
    let mut removed = Vec::new();
    loop {
        let mut left = Vec::new();
        let before = removed.len();
        for batch in backend_keys.chunks(DELETIONS_MAX) {
            let mut hangs = false;
            for (key, result) in remove_together(db, snapshotter, batch).await {
                match result {
                    Ok(true) => removed.push(key),
                    Ok(false) => {}
                    Err(err) if err.is_failed_precondition() => left.push(key),
                    Err(err) => {
                        // A snapshotter that hangs would hang for each of them.
                        hangs |= err.is_deadline_exceeded();
                        tracing::warn!(snapshotter, key, "will be removed later: {err}");
                    }
                }
            }
            if hangs {
                return removed;
            }
        }
        if left.is_empty() || removed.len() == before {
            return removed;
        }
        backend_keys = left;
    }
}

async fn remove_together(
    db: &Db,
    snapshotter: &str,
    backend_keys: &[String],
) -> Vec<(String, Result<bool>)> {
    let mut tasks = JoinSet::new();
    for key in backend_keys {
        let (db, snapshotter, key) = (db.clone(), snapshotter.to_owned(), key.clone());
        tasks.spawn(async move {
            let result = remove_snapshot(&db, &snapshotter, &key).await;
            (key, result)
        });
    }
    tasks.join_all().await
}

/// False when the snapshot must stay: it is in use or has a record.
async fn remove_snapshot(db: &Db, snapshotter: &str, key: &str) -> Result<bool> {
    let name = snapshots::inflight_name(snapshotter, key);
    let Some(_guard) = db.shared.inflight.try_exclusive(&name) else { return Ok(false) };
    if db.view()?.first(&keys::backend_snapshot(snapshotter, key))?.is_some() {
        return Ok(false);
    }
    let backend = Arc::clone(&db.shared.snapshotters[snapshotter]);
    let text = format!("snapshot {key:?}");
    let key = key.to_owned();
    gone(bounded(&text, async move { backend.remove(&key).await }).await)?;
    Ok(true)
}

/// The number in a backend name `<namespace>/<number>/<name>`.
pub(super) fn number(backend_name: &str) -> u64 {
    backend_name.split('/').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// What is gone already is as good as deleted.
fn gone(result: Result<()>) -> Result<()> {
    match result {
        Err(err) if err.is_not_found() => Ok(()),
        other => other,
    }
}

/// Waits for a backend no longer than [`BACKEND_DELETE_MAX`]; the call itself goes on.
pub(super) async fn bounded<T: Send + 'static>(
    what: &str,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(BACKEND_DELETE_MAX, detached(call)).await {
        Ok(result) => result,
        Err(_) => Err(Error::deadline_exceeded(format!(
            "{what}: no answer from its backend in {BACKEND_DELETE_MAX:?}"
        ))),
    }
}

/// Takes trash keys out; the guards keep makers of the same objects away until then.
async fn take_out(db: &Db, done: Vec<(Key, Guard)>) -> Result<u64> {
    let count = done.len() as u64;
    if done.is_empty() {
        return Ok(0);
    }
    let (keys, guards): (Vec<Key>, Vec<Guard>) = done.into_iter().unzip();
    db.write(move |tx| {
        keys.iter().for_each(|key| tx.txn.delete(key));
        Ok(())
    })
    .await?;
    drop(guards);
    Ok(count)
}

fn names<const N: usize>(
    db: &Db,
    prefix: &Key,
    name: impl Fn([String; N]) -> String,
) -> Result<Vec<String>> {
    db.view()?.range(prefix)?.into_iter().map(|(key, _)| Ok(name(keys::parts(&key)?))).collect()
}
