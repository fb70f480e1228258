//! Objects of the backends that no record names, and records that name nothing.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_errdefs::Result;
use gantry_snapshots::Stray;
use gantry_store::KvRead;

use super::Upkeep;
use crate::content::{blob_name, ingest_name};
use crate::db::now;
use crate::gc::{
    abort_ingest, backend_snapshots, discard_held, expiry, forget_snapshots, is_backend_name,
    remove_backend_snapshots,
};
use crate::keys::{self, Kind};
use crate::records::{IngestRecord, LeaseRecord, decode};
use crate::snapshots;

/// Something that is there for nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Orphan {
    /// A blob in no namespace.
    Blob(String),
    /// A half-written blob that no record names.
    Ingest(String),
    /// A snapshot of a snapshotter that no record names.
    Snapshot {
        /// Name of the snapshotter.
        snapshotter: String,
        /// Its name there.
        name: String,
    },
    /// A record of a snapshot that its snapshotter does not have.
    SnapshotRecord {
        /// Name of the snapshotter.
        snapshotter: String,
        /// The snapshotter's name for it.
        name: String,
    },
    /// A directory of a snapshotter.
    Directory {
        /// Name of the snapshotter.
        snapshotter: String,
        /// The directory.
        stray: Stray,
    },
    /// A lease whose time has passed.
    Lease {
        /// Its namespace.
        namespace: String,
        /// Its id.
        id: String,
    },
}

impl Upkeep {
    /// What is there for nothing at the moment. What waits for the collector in the normal course
    /// of things is not.
    ///
    /// # Errors
    /// The database's and the backends'.
    pub async fn orphans(&self) -> Result<Vec<Orphan>> {
        let mut found = Vec::new();
        self.orphan_blobs(&mut found).await?;
        self.orphan_ingests(&mut found).await?;
        for snapshotter in self.db.snapshotter_names() {
            if let Err(err) = self.orphan_snapshots(&snapshotter, &mut found).await {
                tracing::warn!(snapshotter, %err, "not examined");
            }
        }
        self.expired_leases(&mut found)?;
        found.sort();
        Ok(found)
    }

    /// Removes an orphan, if it still is one; false if it is not.
    ///
    /// # Errors
    /// The database's and the backend's.
    pub async fn remove_orphan(&self, orphan: &Orphan) -> Result<bool> {
        match orphan {
            Orphan::Blob(digest) => {
                let name = blob_name(digest);
                let Some(_guard) = self.db.shared.inflight.try_exclusive(&name) else {
                    return Ok(false);
                };
                if self.is_held(digest)? {
                    return Ok(false);
                }
                discard_held(&self.db, &digest.parse()?).await.map(|()| true)
            }
            Orphan::Ingest(backend_ref) => {
                let name = ingest_name(backend_ref);
                let Some(_guard) = self.db.shared.inflight.try_exclusive(&name) else {
                    return Ok(false);
                };
                if self.recorded_ingests()?.contains(backend_ref) {
                    return Ok(false);
                }
                match abort_ingest(&self.db, backend_ref).await {
                    Err(err) if !err.is_not_found() => Err(err),
                    _ => Ok(true),
                }
            }
            Orphan::Snapshot { snapshotter, name } => {
                let gone =
                    remove_backend_snapshots(&self.db, snapshotter, vec![name.clone()]).await;
                Ok(!gone.is_empty())
            }
            Orphan::SnapshotRecord { snapshotter, name } => {
                forget_snapshots(&self.db, snapshotter, vec![name.clone()]).await?;
                Ok(true)
            }
            Orphan::Directory { snapshotter, stray } => {
                match self.db.shared.snapshotters.get(snapshotter).and_then(|s| s.upkeep()) {
                    Some(upkeep) => upkeep.remove_stray(stray).await,
                    None => Ok(false),
                }
            }
            Orphan::Lease { .. } => self.db.gc().run().await.map(|_| true),
        }
    }

    async fn orphan_blobs(&self, found: &mut Vec<Orphan>) -> Result<()> {
        let mut stored = Vec::new();
        let content = &self.db.shared.content;
        content
            .walk(&mut |info| {
                stored.push(info.digest);
                Ok(())
            })
            .await?;
        for digest in stored {
            if self.is_held(digest.as_str())? {
                continue;
            }
            // Whoever makes it right now has its name.
            let name = blob_name(digest.as_str());
            let Some(_guard) = self.db.shared.inflight.try_exclusive(&name) else { continue };
            if !self.is_held(digest.as_str())? && content.info(&digest).await.is_ok() {
                found.push(Orphan::Blob(digest.into()));
            }
        }
        Ok(())
    }

    /// Whether a record names a blob, be it only that of its removal.
    fn is_held(&self, digest: &str) -> Result<bool> {
        let view = self.db.view()?;
        let held = view.first(&keys::all(Kind::BlobNamespace).str(digest))?.is_some();
        Ok(held || view.has(&keys::all(Kind::TrashBlob).str(digest))?)
    }

    async fn orphan_ingests(&self, found: &mut Vec<Orphan>) -> Result<()> {
        for status in self.db.shared.content.statuses().await? {
            let backend_ref = status.reference;
            let name = ingest_name(&backend_ref);
            let Some(_guard) = self.db.shared.inflight.try_exclusive(&name) else { continue };
            let there = self.db.shared.content.status(&backend_ref).await.is_ok();
            if there && !self.recorded_ingests()?.contains(&backend_ref) {
                found.push(Orphan::Ingest(backend_ref));
            }
        }
        Ok(())
    }

    fn recorded_ingests(&self) -> Result<HashSet<String>> {
        let mut recorded = HashSet::new();
        let view = self.db.view()?;
        view.scan(&keys::all(Kind::Ingest), &mut |_, value| {
            let record: IngestRecord = decode(value, "ingest")?;
            recorded.insert(record.backend_ref);
            Ok(ControlFlow::Continue(()))
        })?;
        view.scan(&keys::all(Kind::TrashIngest), &mut |key, _| {
            let [backend_ref] = keys::parts(key)?;
            recorded.insert(backend_ref);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(recorded)
    }

    async fn orphan_snapshots(&self, snapshotter: &str, found: &mut Vec<Orphan>) -> Result<()> {
        let backend = Arc::clone(&self.db.shared.snapshotters[snapshotter]);
        let stored = backend_snapshots(&self.db, snapshotter).await?;
        for name in &stored {
            let key = keys::backend_snapshot(snapshotter, name);
            let trash = keys::all(Kind::TrashSnapshot).str(snapshotter).str(name);
            let held = || -> Result<bool> {
                let view = self.db.view()?;
                Ok(view.first(&key)?.is_some() || view.has(&trash)?)
            };
            // Names of another form are a remote snapshotter's own.
            if held()? || !is_backend_name(name) {
                continue;
            }
            let inflight = snapshots::inflight_name(snapshotter, name);
            let Some(_guard) = self.db.shared.inflight.try_exclusive(&inflight) else { continue };
            if !held()? && backend.stat(name).await.is_ok() {
                let (snapshotter, name) = (snapshotter.to_owned(), name.clone());
                found.push(Orphan::Snapshot { snapshotter, name });
            }
        }
        let mut recorded = Vec::new();
        self.db.view()?.scan(
            &keys::all(Kind::BackendSnapshot).str(snapshotter),
            &mut |key, _| {
                let [_, name, _, _] = keys::parts(key)?;
                recorded.push(name);
                Ok(ControlFlow::Continue(()))
            },
        )?;
        for name in recorded.into_iter().filter(|name| !stored.contains(name)) {
            let inflight = snapshots::inflight_name(snapshotter, &name);
            let Some(_guard) = self.db.shared.inflight.try_exclusive(&inflight) else { continue };
            let key = keys::backend_snapshot(snapshotter, &name);
            let gone = backend.stat(&name).await.is_err_and(|e| e.is_not_found());
            if gone && self.db.view()?.first(&key)?.is_some() {
                let snapshotter = snapshotter.to_owned();
                found.push(Orphan::SnapshotRecord { snapshotter, name });
            }
        }
        if let Some(upkeep) = backend.upkeep() {
            found.extend(upkeep.strays().await?.into_iter().map(|stray| {
                let snapshotter = snapshotter.to_owned();
                Orphan::Directory { snapshotter, stray }
            }));
        }
        Ok(())
    }

    fn expired_leases(&self, found: &mut Vec<Orphan>) -> Result<()> {
        let latest = now() - COLLECTION_DELAY;
        self.db.view()?.scan(&keys::all(Kind::Lease), &mut |key, value| {
            let [namespace, id] = keys::parts(key)?;
            let record: LeaseRecord = decode(value, "lease")?;
            let expired: Option<SystemTime> = expiry(&record.labels);
            if expired.is_some_and(|at| at < latest) {
                found.push(Orphan::Lease { namespace, id });
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}

/// How long after its time a lease may wait for the collector.
const COLLECTION_DELAY: std::time::Duration = std::time::Duration::from_secs(60);
