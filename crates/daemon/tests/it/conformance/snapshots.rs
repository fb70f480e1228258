//! The snapshots service as a snapshotter.

use async_trait::async_trait;
use gantry_api::containerd::services::snapshots::v1 as wire;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_core::{Context, Labels};
use gantry_errdefs::Result;
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Info, Kind, Snapshotter, Usage};
use tonic::transport::Channel;

use super::{field, labels, map, mask, time, with};

/// One snapshotter of a daemon, through its service.
pub(super) struct Remote {
    channel: Channel,
    name: String,
    ctx: Context,
}

impl Remote {
    pub(super) async fn new(channel: Channel, name: &str) -> Self {
        let ctx = super::lease(&channel, &format!("suite-{name}")).await;
        Self { channel, name: name.to_owned(), ctx }
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }
}

fn info(wire: wire::Info) -> Info {
    let kind = match wire.kind() {
        wire::Kind::View => Kind::View,
        wire::Kind::Committed => Kind::Committed,
        wire::Kind::Active | wire::Kind::Unknown => Kind::Active,
    };
    Info {
        kind,
        name: wire.name,
        parent: (!wire.parent.is_empty()).then_some(wire.parent),
        labels: labels(wire.labels),
        created: time(wire.created_at),
        updated: time(wire.updated_at),
    }
}

fn mounts(wire: Vec<gantry_api::containerd::types::Mount>) -> Vec<Mount> {
    wire.into_iter()
        .map(|m| Mount { kind: m.r#type, source: m.source, target: m.target, options: m.options })
        .collect()
}

#[async_trait]
impl Snapshotter for Remote {
    async fn stat(&self, key: &str) -> Result<Info> {
        let request = wire::StatSnapshotRequest { snapshotter: self.name.clone(), key: key.into() };
        let answer = self.client().stat(with(&self.ctx, request)).await?.into_inner();
        Ok(info(field(answer.info)?))
    }

    async fn update(&self, update: Info, fieldpaths: &[String]) -> Result<Info> {
        let update =
            wire::Info { name: update.name, labels: map(update.labels), ..Default::default() };
        let request = wire::UpdateSnapshotRequest {
            snapshotter: self.name.clone(),
            info: Some(update),
            update_mask: mask(fieldpaths),
        };
        let answer = self.client().update(with(&self.ctx, request)).await?.into_inner();
        Ok(info(field(answer.info)?))
    }

    async fn usage(&self, key: &str) -> Result<Usage> {
        let request = wire::UsageRequest { snapshotter: self.name.clone(), key: key.into() };
        let answer = self.client().usage(with(&self.ctx, request)).await?.into_inner();
        let number = |n: i64| u64::try_from(n).unwrap();
        Ok(Usage { inodes: number(answer.inodes), size: number(answer.size) })
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let request = wire::MountsRequest { snapshotter: self.name.clone(), key: key.into() };
        Ok(mounts(self.client().mounts(with(&self.ctx, request)).await?.into_inner().mounts))
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let request = wire::PrepareSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.into(),
            parent: parent.unwrap_or_default().into(),
            labels: map(labels),
        };
        Ok(mounts(self.client().prepare(with(&self.ctx, request)).await?.into_inner().mounts))
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let request = wire::ViewSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.into(),
            parent: parent.unwrap_or_default().into(),
            labels: map(labels),
        };
        Ok(mounts(self.client().view(with(&self.ctx, request)).await?.into_inner().mounts))
    }

    async fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let request = wire::CommitSnapshotRequest {
            snapshotter: self.name.clone(),
            name: name.into(),
            key: key.into(),
            labels: map(options.labels),
            parent: options.parent.unwrap_or_default(),
        };
        self.client().commit(with(&self.ctx, request)).await?;
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let request =
            wire::RemoveSnapshotRequest { snapshotter: self.name.clone(), key: key.into() };
        self.client().remove(with(&self.ctx, request)).await?;
        Ok(())
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        let request =
            wire::ListSnapshotsRequest { snapshotter: self.name.clone(), filters: vec![] };
        let mut pages = self.client().list(with(&self.ctx, request)).await?.into_inner();
        while let Some(page) = pages.message().await? {
            page.info.into_iter().map(info).try_for_each(&mut *visit)?;
        }
        Ok(())
    }

    async fn cleanup(&self) -> Result<()> {
        let request = wire::CleanupRequest { snapshotter: self.name.clone() };
        self.client().cleanup(with(&self.ctx, request)).await?;
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
