//! `containerd.services.diff.v1`: layers onto mounts, and mounts into layers.

mod apply;
mod compare;
mod overlay;

use std::sync::Arc;

use gantry_api::containerd::services::diff::v1 as wire;
use gantry_api::containerd::services::diff::v1::diff_server::Diff;
use gantry_errdefs::Error;
use gantry_metadata::Db;
use gantry_mount::TempRoot;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

pub(crate) use apply::extract;
pub(crate) use compare::store;

use crate::{call, convert};

/// Layers worked on at one time. Each holds two blocking threads and some megabytes of windows;
/// more than the cores can serve gains nothing.
pub const LAYERS_AT_ONCE_MAX: usize = 8;

/// The blocking part of the service was cancelled or panicked.
pub(crate) fn joined(err: tokio::task::JoinError) -> Error {
    Error::internal(format!("blocking work: {err}"))
}

/// Applies and makes layers.
#[derive(Clone, Debug)]
pub struct DiffService {
    db: Db,
    temp: TempRoot,
    /// Sync the file system after every layer, whether the client asks for it or not.
    sync: bool,
    room: Arc<Semaphore>,
}

impl DiffService {
    /// A service over `db` that mounts below `temp`.
    pub fn new(db: Db, temp: TempRoot, sync: bool) -> Self {
        Self { db, temp, sync, room: Arc::new(Semaphore::new(LAYERS_AT_ONCE_MAX)) }
    }

    async fn enter(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
        Arc::clone(&self.room)
            .acquire_owned()
            .await
            .map_err(|_| Error::unavailable("diff: the daemon is stopping"))
    }
}

#[tonic::async_trait]
impl Diff for DiffService {
    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> Result<Response<wire::ApplyResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let layer = convert::descriptor(call::required(request.diff, "diff")?)?;
        let mounts = convert::mounts(request.mounts);
        let sync = self.sync || request.sync_fs;
        let _room = self.enter().await?;
        let content = self.db.content();
        let applied = apply::apply(&content, &ctx, &layer, mounts, &self.temp, sync).await?;
        let applied = Some(convert::descriptor_to_wire(applied));
        Ok(Response::new(wire::ApplyResponse { applied }))
    }

    async fn diff(
        &self,
        request: Request<wire::DiffRequest>,
    ) -> Result<Response<wire::DiffResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let wanted = compare::Wanted {
            left: convert::mounts(request.left),
            right: convert::mounts(request.right),
            media_type: request.media_type,
            reference: request.r#ref,
            labels: convert::labels(request.labels),
            source_date_epoch: request.source_date_epoch.map(|t| t.seconds),
        };
        let _room = self.enter().await?;
        let made = compare::compare(&self.db.content(), &ctx, wanted, &self.temp).await?;
        Ok(Response::new(wire::DiffResponse { diff: Some(convert::descriptor_to_wire(made)) }))
    }
}
