//! `containerd.services.mounts.v1`: mounts that the daemon makes and keeps by name.

use gantry_api::containerd::services::mounts::v1 as wire;
use gantry_api::containerd::services::mounts::v1::mounts_server::Mounts;
use gantry_api::containerd::types;
use gantry_errdefs::Error;
use gantry_mounts::{Activation, Activations, ActiveMount};
use tonic::{Request, Response, Status};

use crate::stream::{self, Answers};
use crate::{call, convert};

/// Activations of mounts.
#[derive(Clone, Debug)]
pub struct MountsService {
    activations: Activations,
}

impl MountsService {
    /// A service over `activations`.
    pub fn new(activations: Activations) -> Self {
        Self { activations }
    }
}

fn active_to_wire(active: ActiveMount) -> types::ActiveMount {
    types::ActiveMount {
        mount: Some(convert::mount_to_wire(active.mount)),
        mounted_at: convert::time_to_wire(active.mounted_at),
        mount_point: active.mount_point.to_string_lossy().into_owned(),
        data: Default::default(),
    }
}

fn to_wire(activation: Activation) -> types::ActivationInfo {
    types::ActivationInfo {
        name: activation.name,
        active: activation.active.into_iter().map(active_to_wire).collect(),
        system: convert::mounts_to_wire(activation.system),
        labels: convert::labels_to_wire(activation.labels),
    }
}

#[tonic::async_trait]
impl Mounts for MountsService {
    async fn activate(
        &self,
        request: Request<wire::ActivateRequest>,
    ) -> Result<Response<wire::ActivateResponse>, Status> {
        let ctx = call::context(&request)?;
        let r = request.into_inner();
        let (mounts, labels) = (convert::mounts(r.mounts), convert::labels(r.labels));
        let made = self.activations.activate(&ctx, &r.name, mounts, labels, r.temporary).await?;
        Ok(Response::new(wire::ActivateResponse { info: Some(to_wire(made)) }))
    }

    async fn deactivate(
        &self,
        request: Request<wire::DeactivateRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        self.activations.deactivate(&ctx.namespace, &request.get_ref().name).await?;
        Ok(Response::new(()))
    }

    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let ctx = call::context(&request)?;
        let found = self.activations.info(&ctx.namespace, &request.get_ref().name)?;
        Ok(Response::new(wire::InfoResponse { info: Some(to_wire(found)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        call::context(&request)?;
        Err(Error::unimplemented("mount update").into())
    }

    type ListStream = Answers<wire::ListMessage>;

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let ctx = call::context(&request)?;
        let found = self.activations.list(&ctx.namespace);
        Ok(Response::new(stream::each(found, |activation| wire::ListMessage {
            info: Some(to_wire(activation)),
        })))
    }
}
