//! Snapshots by namespace: records over backends that know no namespaces.
//!
//! A client's key `web` in namespace `default` is `default/17/web` in the backend; the number is
//! never used twice, so a key that is free for clients is free in the backend, whatever waits
//! there for the collector. The record holds the backend's key, the parent by the client's key,
//! kind, labels and times. A snapshot is made in the backend first and recorded second; what lies
//! between at a crash is an orphan that start-up removes.

mod applied;
mod bound;
mod make;
mod share;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use gantry_core::fieldmask::{self, Path};
use gantry_core::{Context, Labels, Namespace, filters, labels};
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Info, Kind, Snapshotter, Usage, label};
use gantry_store::KvRead;

pub(crate) use applied::Applied;

use crate::content::label_paths;
use crate::db::{Db, Tx, encode, now};
use crate::event::Event;
use crate::filter::SnapshotView;
use crate::gc::Node;
use crate::keys;
use crate::records::{SnapshotRecord, decode, nanos, time};

/// The snapshots of one snapshotter, as each namespace sees them.
#[derive(Clone)]
pub struct Snapshots {
    db: Db,
    name: Arc<str>,
    backend: Arc<dyn Snapshotter>,
}

impl Snapshots {
    pub(crate) fn new(db: Db, name: &str, backend: Arc<dyn Snapshotter>) -> Self {
        Self { db, name: name.into(), backend }
    }

    /// Name of the snapshotter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same snapshots as a [`Snapshotter`] for code that knows no contexts, such as an
    /// unpacker: every call is made in `ctx`.
    pub fn bind(&self, ctx: Context) -> Arc<dyn Snapshotter> {
        Arc::new(bound::Bound { snapshots: self.clone(), ctx })
    }

    /// What is known of the snapshot `key`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn stat(&self, ctx: &Context, key: &str) -> Result<Info> {
        let record = self.read(&self.db.view()?, ctx, key)?;
        let stored = self.backend.stat(&record.backend_key).await;
        let stored = stored.map_err(|err| renamed(err, key, &record))?;
        overlay(key.to_owned(), record, Some(stored))
    }

    /// Changes labels of the snapshot `key`. `fieldpaths` are `labels` and `labels.<key>`; none
    /// is `labels`. An empty value deletes a label. Labels that the backend knows change there
    /// too.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for another field path or a bad label.
    pub async fn update(
        &self,
        ctx: &Context,
        key: &str,
        labels: Labels,
        fieldpaths: &[String],
    ) -> Result<Info> {
        labels::validate_all(&labels)?;
        let what = format!("snapshot {key:?}");
        let fieldpaths = label_paths(fieldpaths);
        let mask = fieldmask::parse(&what, &fieldpaths, &[], &["labels"])?;
        let record = self.read(&self.db.view()?, ctx, key)?;
        let stored = self.update_backend(&record, &labels, &mask).await;
        let stored = stored.map_err(|err| renamed(err, key, &record))?;
        let (this, ctx, key) = (self.clone(), ctx.clone(), key.to_owned());
        self.db
            .write(move |tx| {
                let mut record = this.read(tx.txn, &ctx, &key)?;
                let mask = fieldmask::parse(&what, &fieldpaths, &[], &["labels"])?;
                fieldmask::merge_map(&mut record.labels, "labels", &mask, &labels);
                record.updated_at = nanos(now());
                this.put(tx, &ctx.namespace, &key, &record);
                overlay(key, record, Some(stored))
            })
            .await
    }

    /// Disk use, as [`Snapshotter::usage`].
    ///
    /// # Errors
    /// NotFound.
    pub async fn usage(&self, ctx: &Context, key: &str) -> Result<Usage> {
        let record = self.read(&self.db.view()?, ctx, key)?;
        self.backend.usage(&record.backend_key).await.map_err(|err| renamed(err, key, &record))
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for a committed snapshot.
    pub async fn mounts(&self, ctx: &Context, key: &str) -> Result<Vec<Mount>> {
        let record = self.read(&self.db.view()?, ctx, key)?;
        if kind(&record)? == Kind::Committed {
            let text = format!("snapshot {key:?} is committed, it has no mounts");
            return Err(Error::failed_precondition(text));
        }
        self.backend.mounts(&record.backend_key).await.map_err(|err| renamed(err, key, &record))
    }

    /// The mounts of a view of the committed snapshot `name`, without a view being made: none where
    /// the snapshotter does not keep its trees itself. The caller sees to it that it stays, by a
    /// lease or a snapshot on top.
    ///
    /// # Errors
    /// As [`gantry_snapshots::Upkeep::mounts`].
    pub async fn layer_mounts(&self, ctx: &Context, name: &str) -> Result<Option<Vec<Mount>>> {
        let Some(upkeep) = self.backend.upkeep() else { return Ok(None) };
        let record = self.read(&self.db.view()?, ctx, name)?;
        let mounts = upkeep.mounts(&record.backend_key).await;
        mounts.map(Some).map_err(|err| renamed(err, name, &record))
    }

    /// Makes an active snapshot over `parent`. It joins the context's lease. Publishes
    /// `/snapshot/prepare`.
    ///
    /// # Errors
    /// AlreadyExists, also when the label `containerd.io/snapshot.ref` names a snapshot that is
    /// there or that a remote snapshotter has at hand; NotFound for the parent or the lease;
    /// InvalidArgument when the parent is not committed, or for a bad label.
    pub async fn prepare(
        &self,
        ctx: &Context,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.make(ctx, Kind::Active, key, parent, labels).await
    }

    /// Makes a view of `parent`; no event. Otherwise as [`Snapshots::prepare`].
    ///
    /// # Errors
    /// As [`Snapshots::prepare`].
    pub async fn view(
        &self,
        ctx: &Context,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.make(ctx, Kind::View, key, parent, labels).await
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`. Publishes
    /// `/snapshot/commit`.
    ///
    /// # Errors
    /// NotFound; AlreadyExists; FailedPrecondition when `key` is not active.
    pub async fn commit(
        &self,
        ctx: &Context,
        name: &str,
        key: &str,
        options: CommitOptions,
    ) -> Result<()> {
        self.commit_as(ctx, name, key, options).await
    }

    /// Removes a snapshot; its disk space goes with the next collection. Publishes
    /// `/snapshot/remove`.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition when it has children.
    pub async fn remove(&self, ctx: &Context, key: &str) -> Result<()> {
        let (this, ctx, key) = (self.clone(), ctx.clone(), key.to_owned());
        let lease_kind = this.lease_kind();
        self.db
            .write(move |tx| {
                let record = this.read(tx.txn, &ctx, &key)?;
                let children = keys::snapshot_children(&ctx.namespace, &this.name, &key);
                if tx.txn.first(&children)?.is_some() {
                    return Err(Error::failed_precondition(format!(
                        "snapshot {key:?} has children and cannot be removed"
                    )));
                }
                remove(tx, &ctx.namespace, &this.name, &key, &record);
                tx.lease_drop(&ctx, &lease_kind, &key);
                Ok(())
            })
            .await
    }

    /// The snapshots that match any of `filters` (fields name, parent, kind, labels), by key.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Info>> {
        let filter = filters::parse_all(filters)?;
        let own = keys::object(keys::Kind::Snapshot, &ctx.namespace, &self.name);
        let records = self
            .db
            .read(move |view| {
                let mut records = Vec::new();
                view.scan(&own, &mut |key, value| {
                    let [_, _, key] = keys::parts(key)?;
                    let record: SnapshotRecord = decode(value, &format!("snapshot {key:?}"))?;
                    records.push((key, record));
                    Ok(ControlFlow::Continue(()))
                })?;
                Ok(records)
            })
            .await?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        // Only for the labels that the backend adds.
        let mut stored = HashMap::new();
        self.backend
            .walk(&mut |info| {
                if !info.labels.is_empty() {
                    stored.insert(info.name.clone(), info);
                }
                Ok(())
            })
            .await?;
        let mut found = Vec::new();
        for (key, record) in records {
            let backend = stored.remove(&record.backend_key);
            let info = overlay(key, record, backend)?;
            if filter.matches(&SnapshotView(&info)) {
                found.push(info);
            }
        }
        Ok(found)
    }

    /// Not for clients: the collector cleans up.
    ///
    /// # Errors
    /// Unimplemented.
    pub async fn cleanup(&self, _ctx: &Context) -> Result<()> {
        Err(Error::unimplemented(format!("cleanup of snapshotter {}", self.name)))
    }

    /// The kind under which leases list these snapshots.
    fn lease_kind(&self) -> String {
        format!("snapshots/{}", self.name)
    }

    fn read(&self, read: &impl KvRead, ctx: &Context, key: &str) -> Result<SnapshotRecord> {
        self.find(read, ctx, key)?.ok_or_else(|| missing(key))
    }

    fn find(&self, read: &impl KvRead, ctx: &Context, key: &str) -> Result<Option<SnapshotRecord>> {
        read.get(&keys::snapshot(&ctx.namespace, &self.name, key))?
            .map(|value| decode(&value, &format!("snapshot {key:?}")))
            .transpose()
    }

    /// Writes a record with its indexes.
    fn put(&self, tx: &mut Tx<'_, '_>, ns: &Namespace, key: &str, record: &SnapshotRecord) {
        tx.txn.put(&keys::snapshot(ns, &self.name, key), encode(record));
        tx.txn.put(
            &keys::backend_snapshot(&self.name, &record.backend_key).str(ns.as_str()).str(key),
            Vec::new(),
        );
        if !record.parent.is_empty() {
            let child = keys::snapshot_children(ns, &self.name, &record.parent).str(key);
            tx.txn.put(&child, Vec::new());
        }
        tx.touch(|| Node::snapshot(ns, &self.name, key));
    }

    async fn update_backend(
        &self,
        record: &SnapshotRecord,
        labels: &Labels,
        mask: &[Path<'_>],
    ) -> Result<Info> {
        let mut info = self.backend.stat(&record.backend_key).await?;
        let before = info.labels.clone();
        for path in mask {
            match path {
                Path::Field(_) => {
                    info.labels.retain(|key, _| !is_inherited(key) || key == label::UPPER_DIR);
                    info.labels.extend(inherited(labels));
                }
                Path::Key { key, .. } if is_inherited(key) => {
                    fieldmask::merge_key(&mut info.labels, key, labels);
                }
                Path::Key { .. } => {}
            }
        }
        if info.labels == before {
            return Ok(info);
        }
        self.backend.update(info, &[]).await
    }
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Takes the record of a snapshot out; the backend's goes into the trash. The caller has seen
/// that there are no children.
pub(crate) fn remove(
    tx: &mut Tx<'_, '_>,
    namespace: &Namespace,
    snapshotter: &str,
    key: &str,
    record: &SnapshotRecord,
) {
    forget(tx, namespace, snapshotter, key, record);
    let trash = keys::all(keys::Kind::TrashSnapshot).str(snapshotter).str(&record.backend_key);
    tx.txn.put(&trash, Vec::new());
    let (key, snapshotter) = (key.to_owned(), snapshotter.to_owned());
    tx.emit(namespace, Event::SnapshotRemove { key, snapshotter });
    tx.dirty();
}

/// Takes the record of a snapshot out with its indexes.
pub(crate) fn forget(
    tx: &mut Tx<'_, '_>,
    namespace: &Namespace,
    snapshotter: &str,
    key: &str,
    record: &SnapshotRecord,
) {
    tx.txn.delete(&keys::snapshot(namespace, snapshotter, key));
    let backend = keys::backend_snapshot(snapshotter, &record.backend_key);
    tx.txn.delete(&backend.str(namespace.as_str()).str(key));
    if !record.parent.is_empty() {
        tx.txn.delete(&keys::snapshot_children(namespace, snapshotter, &record.parent).str(key));
    }
}

/// The name of a snapshot among what is in flight.
pub(crate) fn inflight_name(snapshotter: &str, backend_key: &str) -> String {
    format!("snapshot {snapshotter} {backend_key}")
}

const fn kind_number(kind: Kind) -> u32 {
    match kind {
        Kind::View => 1,
        Kind::Active => 2,
        Kind::Committed => 3,
    }
}

fn kind(record: &SnapshotRecord) -> Result<Kind> {
    [Kind::View, Kind::Active, Kind::Committed]
        .into_iter()
        .find(|kind| kind_number(*kind) == record.kind)
        .ok_or_else(|| Error::data_loss(format!("snapshot of unknown kind {}", record.kind)))
}

fn missing(key: &str) -> Error {
    Error::not_found(format!("snapshot {key:?}"))
}

/// An error of the backend, which speaks of its own key, for the client, who knows another.
fn renamed(err: Error, key: &str, record: &SnapshotRecord) -> Error {
    let text = err.message().replace(&record.backend_key, key);
    Error::new(err.class(), text).with_source(err)
}

fn is_inherited(key: &str) -> bool {
    key == label::TARGET_REF || key.starts_with(label::INHERITED_PREFIX)
}

/// The labels that go on to the backend.
fn inherited(labels: &Labels) -> Labels {
    labels
        .iter()
        .filter(|(key, value)| is_inherited(key) && !value.is_empty())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn overlay(key: String, record: SnapshotRecord, stored: Option<Info>) -> Result<Info> {
    let mut labels = stored.map(|info| info.labels).unwrap_or_default();
    let kind = kind(&record)?;
    labels.extend(record.labels);
    Ok(Info {
        kind,
        name: key,
        parent: (!record.parent.is_empty()).then_some(record.parent),
        labels,
        created: time(record.created_at),
        updated: time(record.updated_at),
    })
}
