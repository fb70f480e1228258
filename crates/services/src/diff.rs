//! `containerd.services.diff.v1`: layers onto mounts, and mounts into layers.

use gantry_api::containerd::services::diff::v1 as wire;
use gantry_api::containerd::services::diff::v1::diff_server::Diff;
use gantry_images::{ApplyRequest, DiffRequest, Differs};
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// Applies and makes layers.
#[derive(Clone, Debug)]
pub struct DiffService {
    differs: Differs,
    /// Sync the file system after every layer, whether the client asks for it or not.
    sync: bool,
}

impl DiffService {
    /// A service over `differs`.
    pub fn new(differs: Differs, sync: bool) -> Self {
        Self { differs, sync }
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
        let payloads = request.payloads.into_iter().map(|(name, any)| (name, convert::any(any)));
        let how = ApplyRequest { sync: self.sync || request.sync_fs, payloads: payloads.collect() };
        let applied = self.differs.apply(&ctx, &layer, &mounts, how).await?;
        let applied = Some(convert::descriptor_to_wire(applied));
        Ok(Response::new(wire::ApplyResponse { applied }))
    }

    async fn diff(
        &self,
        request: Request<wire::DiffRequest>,
    ) -> Result<Response<wire::DiffResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let (left, right) = (convert::mounts(request.left), convert::mounts(request.right));
        let wanted = DiffRequest {
            media_type: request.media_type,
            reference: request.r#ref,
            labels: convert::labels(request.labels),
            source_date_epoch: request.source_date_epoch.map(|t| t.seconds),
        };
        let made = self.differs.diff(&ctx, &left, &right, wanted).await?;
        Ok(Response::new(wire::DiffResponse { diff: Some(convert::descriptor_to_wire(made)) }))
    }
}
