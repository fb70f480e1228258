//! A snapshotter of one namespace.

use async_trait::async_trait;
use gantry_core::{Context, Labels};
use gantry_errdefs::Result;
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Info, Snapshotter, Usage};

use super::Snapshots;

/// [`Snapshots`] with every call in one context.
pub(super) struct Bound {
    pub(super) snapshots: Snapshots,
    pub(super) ctx: Context,
}

#[async_trait]
impl Snapshotter for Bound {
    async fn stat(&self, key: &str) -> Result<Info> {
        self.snapshots.stat(&self.ctx, key).await
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info> {
        self.snapshots.update(&self.ctx, &info.name, info.labels, fieldpaths).await
    }

    async fn usage(&self, key: &str) -> Result<Usage> {
        self.snapshots.usage(&self.ctx, key).await
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.snapshots.mounts(&self.ctx, key).await
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.snapshots.prepare(&self.ctx, key, parent, labels).await
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.snapshots.view(&self.ctx, key, parent, labels).await
    }

    async fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        self.snapshots.commit(&self.ctx, name, key, options).await
    }

    async fn remove(&self, key: &str) -> Result<()> {
        self.snapshots.remove(&self.ctx, key).await
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        self.snapshots.list(&self.ctx, &[]).await?.into_iter().try_for_each(visit)
    }

    async fn cleanup(&self) -> Result<()> {
        self.snapshots.cleanup(&self.ctx).await
    }

    /// The backend lives on; others use it.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
