//! Snapshots by namespace.
#![allow(clippy::todo, unused_variables)]

use std::sync::Arc;

use gantry_core::{Context, Labels};
use gantry_errdefs::Result;
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Info, Snapshotter, Usage};

use crate::db::Db;

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
        todo!()
    }

    /// What is known of the snapshot `key`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn stat(&self, ctx: &Context, key: &str) -> Result<Info> {
        todo!()
    }

    /// Changes labels of the snapshot `key`. `fieldpaths` are `labels` and `labels.<key>`; none
    /// is `labels`. An empty value deletes a label.
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
        todo!()
    }

    /// Disk use, as [`Snapshotter::usage`].
    ///
    /// # Errors
    /// NotFound.
    pub async fn usage(&self, ctx: &Context, key: &str) -> Result<Usage> {
        todo!()
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for a committed snapshot.
    pub async fn mounts(&self, ctx: &Context, key: &str) -> Result<Vec<Mount>> {
        todo!()
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
        todo!()
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
        todo!()
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
        todo!()
    }

    /// Removes a snapshot; its disk space goes with the next collection. Publishes
    /// `/snapshot/remove`.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition when it has children.
    pub async fn remove(&self, ctx: &Context, key: &str) -> Result<()> {
        todo!()
    }

    /// The snapshots that match any of `filters` (fields name, parent, kind, labels), by key.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Info>> {
        todo!()
    }

    /// Not for clients: the collector cleans up.
    ///
    /// # Errors
    /// Unimplemented.
    pub async fn cleanup(&self, ctx: &Context) -> Result<()> {
        todo!()
    }
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("name", &self.name).finish_non_exhaustive()
    }
}
