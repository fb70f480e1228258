//! One run of the collector.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gantry_core::{Context, Namespace};
use gantry_errdefs::Result;
use gantry_store::{KvRead, Snapshot};

use super::graph::{self, BackReferences};
use super::mark::{mark, referrers_first};
use super::members::{self, Listed};
use super::node::{Node, NodeKind};
use super::{GcStats, labels, trash};
use crate::db::{Db, Tx, blocking};
use crate::keys::{self, Kind};
use crate::records::{IngestRecord, LeaseRecord, decode};
use crate::{content, images, leases, snapshots};

/// Records removed by one transaction. Other writers wait behind at most one of these: a
/// millisecond or so.
const SWEEP_BATCH_LEN: usize = 64;

/// Noted nodes that a sweep may mark on from by itself; more are marked over a snapshot first.
const TOUCHED_FEW: usize = 64;

/// Rounds of marking noted nodes over a snapshot before sweeping anyway.
const CATCH_UP_ROUNDS: usize = 3;

/// When a failed run is tried again, if nothing else calls for one before.
pub(super) const RETRY_DELAY: Duration = Duration::from_secs(30);

/// What is marked, shared by the sweeps.
struct Marks {
    live: HashSet<Node>,
    back: BackReferences,
}

impl Marks {
    fn mark_from(&mut self, grey: Vec<Node>, read: &dyn KvRead) -> Result<()> {
        let Self { live, back } = self;
        mark(grey, live, &mut |node, out| graph::edges(read, back, node, out))
    }

    fn is_live(&self, node: &Node) -> bool {
        let flat = Node { flat: true, ..node.clone() };
        self.live.contains(node) || self.live.contains(&flat)
    }
}

type SharedMarks = Arc<Mutex<Marks>>;

/// Collects garbage as of `now`.
pub(super) async fn collect(db: &Db, now: SystemTime) -> Result<GcStats> {
    let started = Instant::now();
    let state = &db.shared.gc;
    state.mutations.store(0, Ordering::Release);
    state.deletions.store(0, Ordering::Release);
    // Before the snapshot: what it does not show is noted after this.
    state.expiry_nanos.store(u64::MAX, Ordering::Release);
    let swept = mark_and_sweep(db, now).await;
    state.barrier_up.store(false, Ordering::Release);
    state.touched().clear();
    let result = match swept {
        Ok((removed, unheld)) => {
            let members = members::remove(state, unheld).await;
            trash::empty(db).await.map(|deleted| (removed, deleted + members))
        }
        Err(err) => Err(err),
    };
    let elapsed = started.elapsed();
    let mut totals = state.totals();
    totals.elapsed += elapsed;
    match result {
        Ok((removed, deleted)) => {
            totals.succeeded += 1;
            tracing::debug!(removed, deleted, ?elapsed, "collected garbage");
            Ok(GcStats { elapsed, removed, deleted })
        }
        Err(err) => {
            totals.failed += 1;
            state.expect_expiry(now + RETRY_DELAY);
            Err(err)
        }
    }
}

/// Removes the records that nothing reaches; returns how many, and the members nothing holds.
async fn mark_and_sweep(db: &Db, now: SystemTime) -> Result<(u64, Vec<Listed>)> {
    // On the writer thread: what ran before it is in the snapshot taken after it, what runs after
    // it is noted.
    let shared = Arc::clone(&db.shared);
    db.write(move |_| {
        shared.gc.touched().clear();
        shared.gc.barrier_up.store(true, Ordering::Release);
        Ok(())
    })
    .await?;
    let open: HashSet<_> = db.shared.ingests.names().into_iter().collect();
    // Before the snapshot: those that are listed were made under something that it shows, or that
    // is noted.
    let mut members = db.shared.gc.sources.list();
    let view = db.view()?;
    let (marks, garbage, next_expiry, mut members) = blocking(move || {
        let (marks, garbage, next_expiry) = mark_all(&view, now, &open, &members)?;
        members.retain(|listed| !marks.is_live(&listed.node));
        Ok((marks, garbage, next_expiry, members))
    })
    .await?;
    if let Some(at) = next_expiry {
        db.shared.gc.expect_expiry(at);
    }
    let marks: SharedMarks = Arc::new(Mutex::new(marks));
    if garbage.is_empty() && members.is_empty() {
        return Ok((0, Vec::new()));
    }
    catch_up(db, &marks).await?;
    let mut removed = 0;
    for batch in garbage.chunks(SWEEP_BATCH_LEN) {
        let (batch, marks) = (batch.to_vec(), Arc::clone(&marks));
        let shared = Arc::clone(&db.shared);
        removed += db
            .write(move |tx| {
                let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
                let touched = std::mem::take(&mut *shared.gc.touched());
                marks.mark_from(touched, tx.txn)?;
                let mut removed = 0;
                for node in batch {
                    let open = node.kind == NodeKind::Ingest
                        && shared.ingests.is_open(&node.namespace, &node.key);
                    if !open && !marks.is_live(&node) && sweep(tx, &node, now)? {
                        removed += 1;
                    }
                }
                Ok(removed)
            })
            .await?;
    }
    if !members.is_empty() {
        let shared = Arc::clone(&db.shared);
        members = db
            .write(move |tx| {
                let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
                let touched = std::mem::take(&mut *shared.gc.touched());
                marks.mark_from(touched, tx.txn)?;
                members.retain(|listed| !marks.is_live(&listed.node));
                Ok(members)
            })
            .await?;
    }
    Ok((removed, members))
}

type Marked = (Marks, Vec<Node>, Option<SystemTime>);

/// Marks everything over one snapshot; returns the garbage in the order of its removal.
fn mark_all(
    view: &Snapshot,
    now: SystemTime,
    open: &HashSet<(String, String)>,
    members: &[Listed],
) -> Result<Marked> {
    let mut scan = graph::scan(view, now, open)?;
    members.iter().for_each(|listed| scan.member(&listed.node, &listed.member, now));
    let mut marks = Marks { live: HashSet::new(), back: scan.back_references };
    marks.mark_from(scan.roots, view)?;
    let garbage: Vec<Node> = scan.candidates.into_iter().filter(|n| !marks.is_live(n)).collect();
    let none = BackReferences::new();
    let ordered = referrers_first(garbage, &mut |node, out| graph::edges(view, &none, node, out))?;
    Ok((marks, ordered, scan.next_expiry))
}

/// Marks on from the nodes noted meanwhile, over snapshots, so that the sweeps have little to do
/// in their transactions.
async fn catch_up(db: &Db, marks: &SharedMarks) -> Result<()> {
    for _ in 0..CATCH_UP_ROUNDS {
        if db.shared.gc.touched().len() <= TOUCHED_FEW {
            return Ok(());
        }
        // Taken on the writer thread, so that the snapshot after it has what they wrote.
        let shared = Arc::clone(&db.shared);
        let touched = db.write(move |_| Ok(std::mem::take(&mut *shared.gc.touched()))).await?;
        let (view, marks) = (db.view()?, Arc::clone(marks));
        blocking(move || {
            marks.lock().unwrap_or_else(PoisonError::into_inner).mark_from(touched, &view)
        })
        .await?;
    }
    Ok(())
}

/// Removes the record of a node that nothing reaches. False when there is nothing to remove any
/// more, or not yet.
fn sweep(tx: &mut Tx<'_, '_>, node: &Node, now: SystemTime) -> Result<bool> {
    let namespace = Namespace::new(node.namespace.as_str())?;
    let ctx = Context::new(namespace);
    let ns = &ctx.namespace;
    match &node.kind {
        NodeKind::Lease => {
            let Some(value) = tx.txn.get(&keys::object(Kind::Lease, ns, &node.key))? else {
                return Ok(false);
            };
            let record: LeaseRecord = decode(&value, "lease")?;
            if !is_past(&record.labels, now) {
                return Ok(false);
            }
            leases::remove(tx, &ctx, &node.key)?;
        }
        NodeKind::Image => {
            let Some(labels) = images::labels(tx.txn, &ctx, &node.key)? else { return Ok(false) };
            if !is_past(&labels, now) {
                return Ok(false);
            }
            images::remove(tx, &ctx, node.key.clone());
        }
        NodeKind::Content => {
            if !tx.txn.has(&keys::object(Kind::Blob, ns, &node.key))? {
                return Ok(false);
            }
            content::remove(tx, ns, &node.key)?;
        }
        NodeKind::Snapshot(snapshotter) => {
            let found = graph::snapshot_record(tx.txn, ns, snapshotter, &node.key)?;
            let Some(record) = found else { return Ok(false) };
            let children = keys::snapshot_children(ns, snapshotter, &node.key);
            if tx.txn.first(&children)?.is_some() {
                return Ok(false);
            }
            snapshots::remove(tx, ns, snapshotter, &node.key, &record);
        }
        NodeKind::Ingest => {
            let key = keys::object(Kind::Ingest, ns, &node.key);
            let Some(value) = tx.txn.get(&key)? else { return Ok(false) };
            let record: IngestRecord = decode(&value, "ingest")?;
            content::remove_ingest(tx, ns, &node.key, &record);
        }
        NodeKind::Container
        | NodeKind::Sandbox
        | NodeKind::Mount
        | NodeKind::Stream
        | NodeKind::Other => return Ok(false),
    }
    Ok(true)
}

fn is_past(labels: &gantry_core::Labels, now: SystemTime) -> bool {
    labels::expiry(labels).is_some_and(|at| at <= now)
}
