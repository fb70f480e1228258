//! Snapshots of one snapshotter.

use std::fmt;
use std::time::SystemTime;

use gantry_api::containerd::services::snapshots::v1 as wire;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_api::containerd::types;
use gantry_core::Labels;
use gantry_errdefs::Result;

use crate::cancel::make_or_undo;
use crate::client::{Client, service};
use crate::convert::{Mount, label_map, label_mask, labels, required, status, time};

/// Label, to be `true`, of an overlayfs snapshot of gantryd: what is written to it is of no use once
/// the machine has gone down, so nobody waits for the disk when it is unmounted. Elsewhere it says
/// nothing.
pub const VOLATILE_LABEL: &str = "containerd.io/snapshot/overlay.volatile";

/// The snapshots service for one snapshotter: layered filesystems by key.
#[derive(Clone, Debug)]
pub struct Snapshots {
    client: Client,
    snapshotter: String,
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// A kind this client does not know.
    Unknown,
    /// Read-only, of a committed parent.
    View,
    /// Writable.
    Active,
    /// Finished; may be a parent.
    Committed,
}

/// A snapshot's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Key (active, view) or name (committed).
    pub name: String,
    /// Name of the parent; empty at the bottom.
    pub parent: String,
    /// What it is.
    pub kind: SnapshotKind,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it changed last.
    pub updated_at: SystemTime,
    /// Labels.
    pub labels: Labels,
}

/// Disk space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub size: i64,
    /// Inodes.
    pub inodes: i64,
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "Unknown",
            Self::View => "View",
            Self::Active => "Active",
            Self::Committed => "Committed",
        })
    }
}

impl Client {
    /// The snapshots service for `snapshotter`, such as `overlayfs`.
    pub fn snapshots(&self, snapshotter: impl Into<String>) -> Snapshots {
        Snapshots { client: self.clone(), snapshotter: snapshotter.into() }
    }
}

impl Snapshots {
    /// The snapshotter's name.
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    /// Makes a writable snapshot `key` of the committed `parent` (empty for none) and returns how
    /// to mount it.
    ///
    /// # Errors
    /// AlreadyExists; NotFound for the parent; InvalidArgument for a parent that is not committed
    /// or a snapshotter that is not loaded.
    pub async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let request = wire::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: label_map(&labels),
        };
        let client = self.client.clone();
        self.made(key, async move {
            let answer = service!(client, SnapshotsClient)
                .prepare(client.request(request))
                .await
                .map_err(status)?
                .into_inner();
            Ok(answer.mounts)
        })
        .await
    }

    /// Makes a read-only snapshot `key` of the committed `parent`.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let request = wire::ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: label_map(&labels),
        };
        let client = self.client.clone();
        self.made(key, async move {
            let answer = service!(client, SnapshotsClient)
                .view(client.request(request))
                .await
                .map_err(status)?
                .into_inner();
            Ok(answer.mounts)
        })
        .await
    }

    /// Waits for `work`, which makes snapshot `key`; dropped before its end, the snapshot is
    /// removed again.
    async fn made(
        &self,
        key: &str,
        work: impl Future<Output = Result<Vec<types::Mount>>> + Send + 'static,
    ) -> Result<Vec<Mount>> {
        let (snapshots, key) = (self.clone(), key.to_owned());
        let undo = |_| async move {
            if let Err(e) = snapshots.remove(&key).await {
                tracing::debug!(key, error = %e, "snapshot left");
            }
        };
        let mounts = make_or_undo(work, undo).await?;
        Ok(mounts.into_iter().map(Mount::from).collect())
    }

    /// How to mount the active snapshot or view `key`.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for a committed one.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let request =
            wire::MountsRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let answer = service!(self.client, SnapshotsClient)
            .mounts(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.mounts.into_iter().map(Mount::from).collect())
    }

    /// Turns the active snapshot `key` into the committed `name`, with `labels` instead of its
    /// own.
    ///
    /// # Errors
    /// NotFound; AlreadyExists for the name; FailedPrecondition for a view.
    pub async fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<()> {
        let request = wire::CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: label_map(&labels),
            parent: String::new(),
        };
        service!(self.client, SnapshotsClient)
            .commit(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Removes a snapshot that nothing is based on.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition when it has children.
    pub async fn remove(&self, key: &str) -> Result<()> {
        let request = wire::RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        service!(self.client, SnapshotsClient)
            .remove(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// The record of a snapshot.
    ///
    /// # Errors
    /// NotFound.
    pub async fn stat(&self, key: &str) -> Result<SnapshotRecord> {
        let request = wire::StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        let answer = service!(self.client, SnapshotsClient)
            .stat(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(record(required(answer.info, "the snapshot's record")?))
    }

    /// Sets labels; an empty value removes one.
    ///
    /// # Errors
    /// NotFound.
    pub async fn set_labels(&self, key: &str, new: &Labels) -> Result<SnapshotRecord> {
        let info =
            wire::Info { name: key.to_owned(), labels: label_map(new), ..wire::Info::default() };
        let request = wire::UpdateSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            info: Some(info),
            update_mask: Some(label_mask(new.keys())),
        };
        let answer = service!(self.client, SnapshotsClient)
            .update(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(record(required(answer.info, "the snapshot's record")?))
    }

    /// The snapshots that match any of `filters`; all when there are none.
    ///
    /// # Errors
    /// An error for a bad filter.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<SnapshotRecord>> {
        let request = wire::ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
            filters: filters.to_vec(),
        };
        let mut pages = service!(self.client, SnapshotsClient)
            .list(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        let mut all = Vec::new();
        while let Some(page) = pages.message().await.map_err(status)? {
            all.extend(page.info.into_iter().map(record));
        }
        Ok(all)
    }

    /// Disk space of a snapshot without its parents.
    ///
    /// # Errors
    /// NotFound.
    pub async fn usage(&self, key: &str) -> Result<Usage> {
        let request =
            wire::UsageRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let answer = service!(self.client, SnapshotsClient)
            .usage(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(Usage { size: answer.size, inodes: answer.inodes })
    }
}

fn record(info: wire::Info) -> SnapshotRecord {
    let kind = match info.kind() {
        wire::Kind::Unknown => SnapshotKind::Unknown,
        wire::Kind::View => SnapshotKind::View,
        wire::Kind::Active => SnapshotKind::Active,
        wire::Kind::Committed => SnapshotKind::Committed,
    };
    SnapshotRecord {
        kind,
        name: info.name,
        parent: info.parent,
        created_at: time(info.created_at),
        updated_at: time(info.updated_at),
        labels: labels(info.labels),
    }
}
