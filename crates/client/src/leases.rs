//! Leases: what they hold is not garbage.

use std::time::{Duration, SystemTime};

use gantry_api::containerd::services::leases::v1 as wire;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_core::{Labels, timestamp};
use gantry_errdefs::Result;

use crate::cancel::{make_or_undo, to_its_end};
use crate::client::{Client, handle, service};
use crate::convert::{label_map, labels, required, status, time};

/// Label by which the garbage collector drops a lease.
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

/// How long a guard's lease lives when its owner dies: longer than any pull, short enough not to
/// keep garbage for good.
const GUARD_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

handle! {
    /// The leases service.
    Leases, leases
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Id.
    pub id: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// Labels.
    pub labels: Labels,
}

/// How a lease is made.
#[derive(Clone, Debug, Default)]
pub struct LeaseOptions {
    /// Id; empty for one the daemon invents.
    pub id: String,
    /// Lifetime from now; None lives until it is deleted.
    pub expires: Option<Duration>,
    /// Labels.
    pub labels: Labels,
}

/// A lease that ends with the guard. Use [`LeaseGuard::client`] for calls under it, and
/// [`LeaseGuard::release`] to end it with errors told; dropped, it is deleted in the background,
/// and by its expiry should even that fail.
#[derive(Debug)]
pub struct LeaseGuard {
    client: Client,
    released: bool,
}

impl Leases {
    /// Makes a lease. Dropped before the end, it is removed again.
    ///
    /// # Errors
    /// AlreadyExists.
    pub async fn create(&self, options: LeaseOptions) -> Result<Lease> {
        let mut all = options.labels;
        if let Some(lifetime) = options.expires {
            all.insert(EXPIRE_LABEL.to_owned(), timestamp::format(SystemTime::now() + lifetime));
        }
        let request = wire::CreateRequest { id: options.id, labels: label_map(&all) };
        let (leases, undoing) = (self.clone(), self.clone());
        let work = async move {
            let answer = service!(leases.client, LeasesClient)
                .create(leases.client.request(request))
                .await
                .map_err(status)?
                .into_inner();
            Ok(lease(required(answer.lease, "the lease")?))
        };
        let undo = |made: Lease| async move {
            if let Err(e) = undoing.delete(&made.id, false).await {
                tracing::debug!(lease = made.id, error = %e, "lease left");
            }
        };
        make_or_undo(work, undo).await
    }

    /// Removes a lease; what nothing else holds becomes garbage. With `sync`, returns after a
    /// full collection.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, id: &str, sync: bool) -> Result<()> {
        let request = wire::DeleteRequest { id: id.to_owned(), sync };
        service!(self.client, LeasesClient)
            .delete(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// The leases that match any of `filters`; all when there are none.
    ///
    /// # Errors
    /// InvalidArgument for a bad filter.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<Lease>> {
        let request = wire::ListRequest { filters: filters.to_vec() };
        let answer = service!(self.client, LeasesClient)
            .list(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.leases.into_iter().map(lease).collect())
    }

    /// What a lease holds, as pairs of type and id.
    ///
    /// # Errors
    /// NotFound.
    pub async fn resources(&self, id: &str) -> Result<Vec<(String, String)>> {
        let request = wire::ListResourcesRequest { id: id.to_owned() };
        let answer = service!(self.client, LeasesClient)
            .list_resources(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.resources.into_iter().map(|r| (r.r#type, r.id)).collect())
    }

    /// Puts an object under a lease: type `content`, `ingests`, `images` or `snapshots/<name>`.
    ///
    /// # Errors
    /// NotFound for the lease; Unimplemented for an unknown type.
    pub async fn add_resource(&self, id: &str, kind: &str, resource: &str) -> Result<()> {
        let resource = wire::Resource { id: resource.to_owned(), r#type: kind.to_owned() };
        let request = wire::AddResourceRequest { id: id.to_owned(), resource: Some(resource) };
        service!(self.client, LeasesClient)
            .add_resource(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Takes an object out of a lease.
    ///
    /// # Errors
    /// NotFound for the lease.
    pub async fn remove_resource(&self, id: &str, kind: &str, resource: &str) -> Result<()> {
        let resource = wire::Resource { id: resource.to_owned(), r#type: kind.to_owned() };
        let request = wire::DeleteResourceRequest { id: id.to_owned(), resource: Some(resource) };
        service!(self.client, LeasesClient)
            .delete_resource(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Makes a lease that ends with the returned guard.
    ///
    /// # Errors
    /// Those of [`Self::create`].
    pub async fn guard(&self) -> Result<LeaseGuard> {
        let options = LeaseOptions { expires: Some(GUARD_LIFETIME), ..LeaseOptions::default() };
        let lease = self.create(options).await?;
        Ok(LeaseGuard { client: self.client.under_lease(lease.id), released: false })
    }
}

impl LeaseGuard {
    /// Id of the lease.
    pub fn id(&self) -> &str {
        self.client.lease().unwrap_or_default()
    }

    /// The client whose calls are under the lease.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Ends the lease.
    ///
    /// # Errors
    /// Those of the daemon; a lease that is gone already is none.
    pub async fn release(mut self) -> Result<()> {
        self.released = true;
        let client = self.client.clone();
        let deleted = to_its_end(async move { delete(&client).await }).await;
        match deleted {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let client = self.client.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(e) = delete(&client).await {
                    tracing::debug!(lease = client.lease(), error = %e, "lease left to expire");
                }
            });
        }
    }
}

async fn delete(client: &Client) -> Result<()> {
    let id = client.lease().unwrap_or_default().to_owned();
    client.in_namespace(client.namespace()).leases().delete(&id, false).await
}

fn lease(lease: wire::Lease) -> Lease {
    Lease { id: lease.id, created_at: time(lease.created_at), labels: labels(lease.labels) }
}
