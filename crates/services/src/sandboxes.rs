//! `containerd.services.sandbox.v1`: records of sandboxes.

use gantry_api::containerd::services::sandbox::v1 as wire;
use gantry_api::containerd::services::sandbox::v1::store_server::Store;
use gantry_metadata::Db;
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// Sandbox records.
#[derive(Clone, Debug)]
pub struct SandboxStoreService {
    db: Db,
}

impl SandboxStoreService {
    /// A service over `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[tonic::async_trait]
impl Store for SandboxStoreService {
    async fn create(
        &self,
        request: Request<wire::StoreCreateRequest>,
    ) -> Result<Response<wire::StoreCreateResponse>, Status> {
        let ctx = call::context(&request)?;
        let sandbox = call::required(request.into_inner().sandbox, "sandbox")?;
        let made = self.db.sandboxes().create(&ctx, convert::sandbox(sandbox)).await?;
        let sandbox = Some(convert::sandbox_to_wire(made));
        Ok(Response::new(wire::StoreCreateResponse { sandbox }))
    }

    async fn update(
        &self,
        request: Request<wire::StoreUpdateRequest>,
    ) -> Result<Response<wire::StoreUpdateResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let sandbox = convert::sandbox(call::required(request.sandbox, "sandbox")?);
        let updated = self.db.sandboxes().update(&ctx, sandbox, &request.fields).await?;
        let sandbox = Some(convert::sandbox_to_wire(updated));
        Ok(Response::new(wire::StoreUpdateResponse { sandbox }))
    }

    async fn delete(
        &self,
        request: Request<wire::StoreDeleteRequest>,
    ) -> Result<Response<wire::StoreDeleteResponse>, Status> {
        let ctx = call::context(&request)?;
        self.db.sandboxes().delete(&ctx, &request.get_ref().sandbox_id).await?;
        Ok(Response::new(wire::StoreDeleteResponse {}))
    }

    async fn list(
        &self,
        request: Request<wire::StoreListRequest>,
    ) -> Result<Response<wire::StoreListResponse>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.sandboxes().list(&ctx, &request.get_ref().filters).await?;
        let list = found.into_iter().map(convert::sandbox_to_wire).collect();
        Ok(Response::new(wire::StoreListResponse { list }))
    }

    async fn get(
        &self,
        request: Request<wire::StoreGetRequest>,
    ) -> Result<Response<wire::StoreGetResponse>, Status> {
        let ctx = call::context(&request)?;
        let sandbox = self.db.sandboxes().get(&ctx, &request.get_ref().sandbox_id).await?;
        let sandbox = Some(convert::sandbox_to_wire(sandbox));
        Ok(Response::new(wire::StoreGetResponse { sandbox }))
    }
}
