//! `containerd.services.containers.v1`.

use gantry_api::containerd::services::containers::v1 as wire;
use gantry_api::containerd::services::containers::v1::containers_server::Containers;
use gantry_metadata::Db;
use tonic::{Request, Response, Status};

use crate::stream::{self, Answers};
use crate::{call, convert};

/// Container records; nothing here looks at what runs.
#[derive(Clone, Debug)]
pub struct ContainersService {
    db: Db,
}

impl ContainersService {
    /// A service over `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[tonic::async_trait]
impl Containers for ContainersService {
    async fn get(
        &self,
        request: Request<wire::GetContainerRequest>,
    ) -> Result<Response<wire::GetContainerResponse>, Status> {
        let ctx = call::context(&request)?;
        let container = self.db.containers().get(&ctx, &request.get_ref().id).await?;
        let container = Some(convert::container_to_wire(container));
        Ok(Response::new(wire::GetContainerResponse { container }))
    }

    /// The daemon answers this call by [`crate::WithListing`], to the same effect.
    async fn list(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.containers().list(&ctx, &request.get_ref().filters).await?;
        let containers = found.into_iter().map(convert::container_to_wire).collect();
        Ok(Response::new(wire::ListContainersResponse { containers }))
    }

    type ListStreamStream = Answers<wire::ListContainerMessage>;

    async fn list_stream(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.containers().list(&ctx, &request.get_ref().filters).await?;
        Ok(Response::new(stream::each(found, |container| wire::ListContainerMessage {
            container: Some(convert::container_to_wire(container)),
        })))
    }

    async fn create(
        &self,
        request: Request<wire::CreateContainerRequest>,
    ) -> Result<Response<wire::CreateContainerResponse>, Status> {
        let ctx = call::context(&request)?;
        let container = call::required(request.into_inner().container, "container")?;
        let made = self.db.containers().create(&ctx, convert::container(container)).await?;
        let container = Some(convert::container_to_wire(made));
        Ok(Response::new(wire::CreateContainerResponse { container }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateContainerRequest>,
    ) -> Result<Response<wire::UpdateContainerResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let container = convert::container(call::required(request.container, "container")?);
        let mask = convert::mask(request.update_mask);
        let updated = self.db.containers().update(&ctx, container, &mask).await?;
        let container = Some(convert::container_to_wire(updated));
        Ok(Response::new(wire::UpdateContainerResponse { container }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteContainerRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        self.db.containers().delete(&ctx, &request.get_ref().id).await?;
        Ok(Response::new(()))
    }
}
