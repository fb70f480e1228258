//! `containerd.services.mounts.v1`: not built. Clients ask for an activation first and mount by
//! themselves when the answer is Unimplemented, so the answer matters.

use gantry_api::containerd::services::mounts::v1 as wire;
use gantry_api::containerd::services::mounts::v1::mounts_server::Mounts;
use gantry_errdefs::Error;
use tonic::{Request, Response, Status};

use crate::call;
use crate::stream::Answers;

/// Answers that there is nothing to activate.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountsService;

#[tonic::async_trait]
impl Mounts for MountsService {
    async fn activate(
        &self,
        request: Request<wire::ActivateRequest>,
    ) -> Result<Response<wire::ActivateResponse>, Status> {
        call::context(&request)?;
        let name = &request.get_ref().name;
        Err(Error::unimplemented(format!("mount {name:?}: no mount needs activation")).into())
    }

    async fn deactivate(
        &self,
        request: Request<wire::DeactivateRequest>,
    ) -> Result<Response<()>, Status> {
        call::context(&request)?;
        Err(Error::not_found(format!("mount {:?}", request.get_ref().name)).into())
    }

    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        call::context(&request)?;
        Err(Error::not_found(format!("mount {:?}", request.get_ref().name)).into())
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
        call::context(&request)?;
        Ok(Response::new(Box::pin(futures_util::stream::empty())))
    }
}
