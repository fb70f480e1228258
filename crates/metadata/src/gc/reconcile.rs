//! Comparing records and backends both ways, at start-up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::SystemTime;

use gantry_core::{Context, Namespace};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_store::KvRead;

use super::{Reconciled, trash};
use crate::content::{self, INGEST_KEPT};
use crate::db::{Db, now};
use crate::keys::{self, Kind};
use crate::records::{IngestRecord, decode, nanos};
use crate::snapshots;

/// What must match before anyone looks: see [`super::Gc::recover`].
pub(super) async fn recover(db: &Db, unclean: bool) -> Result<Reconciled> {
    let mut report = Reconciled::default();
    if unclean {
        let (stored, held) = (stored_blobs(db).await?, held_blobs(db)?);
        orphan_blobs(db, &stored, &held, &mut report).await?;
    }
    ingests(db, &mut report).await.context(|| "comparing ingests with records")?;
    log(&report);
    Ok(report)
}

/// Blobs and snapshots, while the store is in use.
pub(super) async fn reconcile(db: &Db) -> Result<Reconciled> {
    let mut report = Reconciled::default();
    blobs(db, &mut report).await.context(|| "comparing blobs with records")?;
    for name in db.snapshotter_names() {
        // One snapshotter that does not answer must not keep the others from being looked at.
        if let Err(err) = snapshots_of(db, &name, &mut report).await {
            tracing::error!(snapshotter = name, "comparing snapshots with records: {err}");
        }
    }
    log(&report);
    Ok(report)
}

fn log(report: &Reconciled) {
    for orphan in &report.orphans_removed {
        tracing::info!(orphan, "removed, no record names it");
    }
    for ingest in &report.ingests_adopted {
        tracing::info!(ingest, "adopted an ingest without a record");
    }
    for record in &report.records_removed {
        tracing::warn!(record, "removed a record, what it names is gone");
    }
}

/// The namespaces that hold each blob.
type Held = BTreeMap<String, Vec<String>>;

async fn stored_blobs(db: &Db) -> Result<HashSet<String>> {
    let mut stored = HashSet::new();
    let visit = &mut |info: gantry_content::Info| {
        stored.insert(String::from(info.digest));
        Ok(())
    };
    db.shared.content.walk(visit).await?;
    Ok(stored)
}

fn held_blobs(db: &Db) -> Result<Held> {
    let mut held = Held::new();
    db.view()?.scan(&keys::all(Kind::BlobNamespace), &mut |key, _| {
        let [digest, namespace] = keys::parts(key)?;
        held.entry(digest).or_default().push(namespace);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(held)
}

async fn orphan_blobs(
    db: &Db,
    stored: &HashSet<String>,
    held: &Held,
    report: &mut Reconciled,
) -> Result<()> {
    for digest in stored.iter().filter(|digest| !held.contains_key(*digest)) {
        trash::discard_blob(db, &digest.parse()?).await?;
        report.orphans_removed.push(format!("blob {digest}"));
    }
    Ok(())
}

async fn blobs(db: &Db, report: &mut Reconciled) -> Result<()> {
    let (stored, held) = (stored_blobs(db).await?, held_blobs(db)?);
    orphan_blobs(db, &stored, &held, report).await?;
    if stored.is_empty() && !held.is_empty() {
        // More likely a directory that is not mounted than every single blob lost.
        return Err(Error::data_loss(format!(
            "the content store is empty, the database names {} blobs; nothing removed",
            held.len()
        )));
    }
    for (digest, namespaces) in held {
        // Looked at again: it may have come since the walk.
        if stored.contains(&digest) || db.shared.content.info(&digest.parse()?).await.is_ok() {
            continue;
        }
        report.records_removed.push(format!("blob {digest} of {}", namespaces.join(", ")));
        db.write(move |tx| {
            for namespace in namespaces {
                content::remove(tx, &Namespace::new(namespace)?, &digest)?;
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn ingests(db: &Db, report: &mut Reconciled) -> Result<()> {
    let stored = db.shared.content.statuses().await?;
    let mut stored: HashMap<String, SystemTime> =
        stored.into_iter().map(|s| (s.reference, s.updated_at)).collect();
    let mut lost = Vec::new();
    let mut taken = HashSet::new();
    db.view()?.scan(&keys::all(Kind::Ingest), &mut |key, value| {
        let [namespace, reference] = keys::parts(key)?;
        let record: IngestRecord = decode(value, "ingest")?;
        if stored.remove(&record.backend_ref).is_none() && !record.shared {
            lost.push((namespace, reference));
        } else {
            taken.insert((namespace, reference));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for (namespace, reference) in lost {
        report.records_removed.push(format!("ingest {reference:?} of {namespace}"));
        let ns = Namespace::new(namespace)?;
        db.write(move |tx| {
            tx.txn.delete(&keys::object(Kind::Ingest, &ns, &reference));
            Ok(())
        })
        .await?;
    }
    // Newest first: of two ingests of one reference the later one goes on.
    let mut orphans: Vec<_> = stored.into_iter().collect();
    orphans.sort_by_key(|(name, _)| std::cmp::Reverse(trash::number(name)));
    for (backend_ref, updated_at) in orphans {
        let expires_at = updated_at + INGEST_KEPT;
        let owner = split(&backend_ref).filter(|_| expires_at > now());
        match owner.filter(|owner| taken.insert(owner.clone())) {
            Some((namespace, reference)) => {
                adopt(db, namespace, reference, &backend_ref, expires_at).await?;
                report.ingests_adopted.push(backend_ref);
            }
            None => {
                match trash::abort_ingest(db, &backend_ref).await {
                    Err(err) if !err.is_not_found() => return Err(err),
                    _ => {}
                }
                report.orphans_removed.push(format!("ingest {backend_ref:?}"));
            }
        }
    }
    Ok(())
}

async fn adopt(
    db: &Db,
    namespace: String,
    reference: String,
    backend_ref: &str,
    expires_at: SystemTime,
) -> Result<()> {
    let ctx = Context::new(Namespace::new(namespace)?);
    let status = db.shared.content.status(backend_ref).await?;
    let record = IngestRecord {
        backend_ref: backend_ref.to_owned(),
        expected: String::new(),
        expires_at: nanos(expires_at),
        total: status.total,
        started_at: nanos(status.started_at),
        shared: false,
        shared_size: 0,
    };
    db.write(move |tx| {
        tx.ensure_namespace(&ctx.namespace)?;
        content::put_ingest(tx, &ctx, &reference, &record);
        Ok(())
    })
    .await
}

/// Whether a name in a backend was given by us.
pub(crate) fn is_backend_name(name: &str) -> bool {
    split(name).is_some()
}

/// Namespace and name of a backend name `<namespace>/<number>/<name>`.
fn split(backend_name: &str) -> Option<(String, String)> {
    let mut parts = backend_name.splitn(3, '/');
    let namespace = Namespace::new(parts.next()?).ok()?;
    parts.next()?.parse::<u64>().ok()?;
    Some((namespace.as_str().to_owned(), parts.next()?.to_owned()))
}

/// The names of all snapshots of a snapshotter.
pub(crate) async fn backend_snapshots(db: &Db, snapshotter: &str) -> Result<HashSet<String>> {
    let backend = std::sync::Arc::clone(&db.shared.snapshotters[snapshotter]);
    let text = format!("listing the snapshots of {snapshotter}");
    trash::bounded(&text, async move {
        let mut stored = HashSet::new();
        backend
            .walk(&mut |info| {
                stored.insert(info.name);
                Ok(())
            })
            .await?;
        Ok(stored)
    })
    .await
}

/// Takes out the records of snapshots that their snapshotter does not have any more.
pub(crate) async fn forget_snapshots(
    db: &Db,
    snapshotter: &str,
    backend_keys: Vec<String>,
) -> Result<()> {
    for backend_key in backend_keys {
        let name = snapshots::inflight_name(snapshotter, &backend_key);
        let Some(_guard) = db.shared.inflight.try_exclusive(&name) else { continue };
        let mut owners = Vec::new();
        let records = keys::backend_snapshot(snapshotter, &backend_key);
        db.view()?.scan(&records, &mut |key, _| {
            let [_, _, namespace, key] = keys::parts(key)?;
            owners.push((Namespace::new(namespace)?, key));
            Ok(ControlFlow::Continue(()))
        })?;
        let snapshotter = snapshotter.to_owned();
        db.write(move |tx| {
            for (ns, key) in owners {
                let record = super::graph::snapshot_record(tx.txn, &ns, &snapshotter, &key)?;
                if let Some(record) = record {
                    snapshots::forget(tx, &ns, &snapshotter, &key, &record);
                }
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn snapshots_of(db: &Db, snapshotter: &str, report: &mut Reconciled) -> Result<()> {
    let stored = backend_snapshots(db, snapshotter).await?;
    let mut held = HashMap::new();
    db.view()?.scan(&keys::all(Kind::BackendSnapshot).str(snapshotter), &mut |key, _| {
        let [_, backend_key, namespace, key] = keys::parts(key)?;
        held.insert(backend_key, (namespace, key));
        Ok(ControlFlow::Continue(()))
    })?;
    // Names of another form were not made through us: a remote snapshotter's own.
    let orphans: Vec<String> = stored
        .iter()
        .filter(|name| !held.contains_key(*name) && split(name).is_some())
        .cloned()
        .collect();
    for orphan in trash::remove_snapshots(db, snapshotter, orphans).await {
        report.orphans_removed.push(format!("snapshot {orphan:?} on {snapshotter}"));
    }
    if stored.is_empty() && !held.is_empty() {
        return Err(Error::data_loss(format!(
            "snapshotter {snapshotter} is empty, the database names {} snapshots; nothing removed",
            held.len()
        )));
    }
    held.retain(|backend_key, _| !stored.contains(backend_key));
    for (backend_key, (namespace, key)) in held {
        let name = snapshots::inflight_name(snapshotter, &backend_key);
        let Some(_guard) = db.shared.inflight.try_exclusive(&name) else { continue };
        report.records_removed.push(format!("snapshot {key:?} of {namespace} on {snapshotter}"));
        let (ns, snapshotter) = (Namespace::new(namespace)?, snapshotter.to_owned());
        db.write(move |tx| {
            if let Some(record) = super::graph::snapshot_record(tx.txn, &ns, &snapshotter, &key)? {
                snapshots::forget(tx, &ns, &snapshotter, &key, &record);
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}
