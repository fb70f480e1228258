//! `containerd.services.namespaces.v1`.

use gantry_api::containerd::services::namespaces::v1 as wire;
use gantry_api::containerd::services::namespaces::v1::namespaces_server::Namespaces;
use gantry_metadata::Db;
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// Namespaces. The one service besides events whose calls need no namespace header.
#[derive(Clone, Debug)]
pub struct NamespacesService {
    db: Db,
}

impl NamespacesService {
    /// A service over `db`.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[tonic::async_trait]
impl Namespaces for NamespacesService {
    async fn get(
        &self,
        request: Request<wire::GetNamespaceRequest>,
    ) -> Result<Response<wire::GetNamespaceResponse>, Status> {
        let namespace = self.db.namespaces().get(&request.get_ref().name).await?;
        let namespace = Some(convert::namespace_to_wire(namespace));
        Ok(Response::new(wire::GetNamespaceResponse { namespace }))
    }

    async fn list(
        &self,
        _: Request<wire::ListNamespacesRequest>,
    ) -> Result<Response<wire::ListNamespacesResponse>, Status> {
        let namespaces = self.db.namespaces().list().await?;
        let namespaces = namespaces.into_iter().map(convert::namespace_to_wire).collect();
        Ok(Response::new(wire::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<wire::CreateNamespaceRequest>,
    ) -> Result<Response<wire::CreateNamespaceResponse>, Status> {
        let namespace = call::required(request.into_inner().namespace, "namespace")?;
        let labels = convert::labels(namespace.labels);
        let made = self.db.namespaces().create(&namespace.name, labels).await?;
        let namespace = Some(convert::namespace_to_wire(made));
        Ok(Response::new(wire::CreateNamespaceResponse { namespace }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateNamespaceRequest>,
    ) -> Result<Response<wire::UpdateNamespaceResponse>, Status> {
        let request = request.into_inner();
        let namespace = call::required(request.namespace, "namespace")?;
        let mask = convert::mask(request.update_mask);
        let labels = convert::labels(namespace.labels);
        let updated = self.db.namespaces().update(&namespace.name, labels, &mask).await?;
        let namespace = Some(convert::namespace_to_wire(updated));
        Ok(Response::new(wire::UpdateNamespaceResponse { namespace }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        self.db.namespaces().delete(&request.get_ref().name).await?;
        Ok(Response::new(()))
    }
}
