//! Namespaces.

use gantry_api::containerd::services::namespaces::v1 as wire;
use gantry_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_core::Labels;
use gantry_errdefs::Result;

use crate::client::{handle, service};
use crate::convert::{label_map, label_mask, labels, required, status};

handle! {
    /// The namespaces service. Its calls are about namespaces, whatever the client's own is.
    Namespaces, namespaces
}

/// A namespace's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

impl Namespaces {
    /// A namespace; one that does not exist has no labels.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn get(&self, name: &str) -> Result<NamespaceRecord> {
        let request = wire::GetNamespaceRequest { name: name.to_owned() };
        let answer = service!(self.client, NamespacesClient)
            .get(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(record(required(answer.namespace, "the namespace")?))
    }

    /// Every namespace.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn list(&self) -> Result<Vec<NamespaceRecord>> {
        let request = wire::ListNamespacesRequest { filter: String::new() };
        let answer = service!(self.client, NamespacesClient)
            .list(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.namespaces.into_iter().map(record).collect())
    }

    /// Makes a namespace. They also appear by themselves with their first object.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument for a bad name or label.
    pub async fn create(&self, name: &str, labels: &Labels) -> Result<()> {
        let namespace = wire::Namespace { name: name.to_owned(), labels: label_map(labels) };
        let request = wire::CreateNamespaceRequest { namespace: Some(namespace) };
        service!(self.client, NamespacesClient)
            .create(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Sets labels; an empty value removes one. Makes the namespace when it is missing.
    ///
    /// # Errors
    /// InvalidArgument.
    pub async fn set_labels(&self, name: &str, new: &Labels) -> Result<()> {
        let namespace = wire::Namespace { name: name.to_owned(), labels: label_map(new) };
        let request = wire::UpdateNamespaceRequest {
            namespace: Some(namespace),
            update_mask: Some(label_mask(new.keys())),
        };
        service!(self.client, NamespacesClient)
            .update(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while it holds objects.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let request = wire::DeleteNamespaceRequest { name: name.to_owned() };
        service!(self.client, NamespacesClient)
            .delete(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }
}

fn record(namespace: wire::Namespace) -> NamespaceRecord {
    NamespaceRecord { name: namespace.name, labels: labels(namespace.labels) }
}
