//! `containerd.services.leases.v1`.

use gantry_api::containerd::services::leases::v1 as wire;
use gantry_api::containerd::services::leases::v1::leases_server::Leases;
use gantry_metadata::Db;
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// Leases and what they hold.
#[derive(Clone, Debug)]
pub struct LeasesService {
    db: Db,
}

impl LeasesService {
    /// A service over `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[tonic::async_trait]
impl Leases for LeasesService {
    async fn create(
        &self,
        request: Request<wire::CreateRequest>,
    ) -> Result<Response<wire::CreateResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let labels = convert::labels(request.labels);
        let lease = self.db.leases().create(&ctx, &request.id, labels).await?;
        Ok(Response::new(wire::CreateResponse { lease: Some(convert::lease_to_wire(lease)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteRequest>) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        self.db.leases().delete(&ctx, &request.id, request.sync).await?;
        Ok(Response::new(()))
    }

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.leases().list(&ctx, &request.get_ref().filters).await?;
        let leases = found.into_iter().map(convert::lease_to_wire).collect();
        Ok(Response::new(wire::ListResponse { leases }))
    }

    async fn add_resource(
        &self,
        request: Request<wire::AddResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let resource = convert::resource(call::required(request.resource, "resource")?);
        self.db.leases().add_resource(&ctx, &request.id, resource).await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(
        &self,
        request: Request<wire::DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let resource = convert::resource(call::required(request.resource, "resource")?);
        self.db.leases().delete_resource(&ctx, &request.id, resource).await?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<wire::ListResourcesRequest>,
    ) -> Result<Response<wire::ListResourcesResponse>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.leases().resources(&ctx, &request.get_ref().id).await?;
        let resources = found.into_iter().map(convert::resource_to_wire).collect();
        Ok(Response::new(wire::ListResourcesResponse { resources }))
    }
}
