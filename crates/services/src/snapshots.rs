//! `containerd.services.snapshots.v1`.

use gantry_api::containerd::services::snapshots::v1 as wire;
use gantry_api::containerd::services::snapshots::v1::snapshots_server::Snapshots;
use gantry_core::filters;
use gantry_errdefs::Error;
use gantry_metadata::{Db, Snapshots as Store};
use gantry_snapshots::{CommitOptions, Info, Kind};
use tonic::{Request, Response, Status};

use crate::stream::{self, Answers};
use crate::{call, convert};

/// Snapshots of every snapshotter.
#[derive(Clone, Debug)]
pub struct SnapshotsService {
    db: Db,
}

impl SnapshotsService {
    /// A service over `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    fn store(&self, name: &str) -> Result<Store, Error> {
        self.db.snapshotter(name)
    }
}

fn parent(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

fn info_to_wire(info: Info) -> wire::Info {
    let kind = match info.kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: info.name,
        parent: info.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: convert::time_to_wire(info.created),
        updated_at: convert::time_to_wire(info.updated),
        labels: convert::labels_to_wire(info.labels),
    }
}

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Result<Response<wire::PrepareSnapshotResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.into_inner();
        let labels = convert::labels(r.labels);
        let store = self.store(&r.snapshotter)?;
        let mounts = store.prepare(&ctx, &r.key, parent(&r.parent), labels).await?;
        let mounts = convert::mounts_to_wire(mounts);
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Result<Response<wire::ViewSnapshotResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.into_inner();
        let labels = convert::labels(r.labels);
        let store = self.store(&r.snapshotter)?;
        let mounts = store.view(&ctx, &r.key, parent(&r.parent), labels).await?;
        Ok(Response::new(wire::ViewSnapshotResponse { mounts: convert::mounts_to_wire(mounts) }))
    }

    async fn mounts(
        &self,
        request: Request<wire::MountsRequest>,
    ) -> Result<Response<wire::MountsResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let mounts = self.store(&r.snapshotter)?.mounts(&ctx, &r.key).await?;
        Ok(Response::new(wire::MountsResponse { mounts: convert::mounts_to_wire(mounts) }))
    }

    async fn commit(
        &self,
        request: Request<wire::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let r = request.into_inner();
        let options = CommitOptions {
            labels: convert::labels(r.labels),
            parent: parent(&r.parent).map(str::to_owned),
            origin: None,
        };
        self.store(&r.snapshotter)?.commit(&ctx, &r.name, &r.key, options).await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        self.store(&r.snapshotter)?.remove(&ctx, &r.key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Result<Response<wire::StatSnapshotResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let info = self.store(&r.snapshotter)?.stat(&ctx, &r.key).await?;
        Ok(Response::new(wire::StatSnapshotResponse { info: Some(info_to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Result<Response<wire::UpdateSnapshotResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.into_inner();
        let info = call::required(r.info, "info")?;
        if info.name.is_empty() {
            return Err(Error::invalid_argument("snapshot: update without a name").into());
        }
        let mask = convert::mask(r.update_mask);
        let labels = convert::labels(info.labels);
        let store = self.store(&r.snapshotter)?;
        let updated = store.update(&ctx, &info.name, labels, &mask).await?;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(info_to_wire(updated)) }))
    }

    type ListStream = Answers<wire::ListSnapshotsResponse>;

    async fn list(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let store = self.store(&r.snapshotter)?;
        // Clients know a bad filter of this call as Unknown.
        filters::parse_all(&r.filters).map_err(|e| Error::unknown(e.text()))?;
        let found = store.list(&ctx, &r.filters).await?;
        Ok(Response::new(stream::pages(found, |page| wire::ListSnapshotsResponse {
            info: page.into_iter().map(info_to_wire).collect(),
        })))
    }

    async fn usage(
        &self,
        request: Request<wire::UsageRequest>,
    ) -> Result<Response<wire::UsageResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.get_ref();
        let usage = self.store(&r.snapshotter)?.usage(&ctx, &r.key).await?;
        Ok(Response::new(wire::UsageResponse {
            size: convert::size_to_wire(usage.size),
            inodes: convert::size_to_wire(usage.inodes),
        }))
    }

    async fn cleanup(
        &self,
        request: Request<wire::CleanupRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        self.store(&request.get_ref().snapshotter)?.cleanup(&ctx).await?;
        Ok(Response::new(()))
    }
}
