//! The conformance suite of the metadata store and of its leases: what every implementation, and
//! every way to one, must do.
//!
//! The suite speaks to a [`Subject`]: [`Db`](crate::Db) is one, a client of the daemon's services
//! another. Each case works in namespaces of its own, whose names begin with `suite-`; a subject is
//! used once. Failures panic.

mod containers;
mod content;
mod direct;
mod images;
mod leases;
mod namespaces;
mod sandboxes;

use std::time::SystemTime;

use async_trait::async_trait;
use gantry_core::{Any, Context, Digest, Labels, Namespace};
use gantry_errdefs::Result;
use gantry_errdefs::expect::{fails, ok};

use crate::{
    Container, ContentInfo, Image, ImageDelete, ImageUpdate, Lease, NamespaceInfo, Resource,
    Sandbox,
};

/// What the suite asks for. Methods are those of the facades of [`Db`](crate::Db), with their
/// errors.
#[async_trait]
#[allow(missing_docs, reason = "each method is documented at the facade it is named after")]
pub trait Subject: Sync {
    async fn container(&self, ctx: &Context, id: &str) -> Result<Container>;
    async fn containers(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Container>>;
    async fn create_container(&self, ctx: &Context, container: Container) -> Result<Container>;
    async fn update_container(
        &self,
        ctx: &Context,
        container: Container,
        paths: &[String],
    ) -> Result<Container>;
    async fn delete_container(&self, ctx: &Context, id: &str) -> Result<()>;

    async fn image(&self, ctx: &Context, name: &str) -> Result<Image>;
    async fn images(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Image>>;
    async fn create_image(
        &self,
        ctx: &Context,
        image: Image,
        at: Option<SystemTime>,
    ) -> Result<Image>;
    async fn update_image(
        &self,
        ctx: &Context,
        image: ImageUpdate,
        paths: &[String],
        at: Option<SystemTime>,
    ) -> Result<Image>;
    async fn delete_image(&self, ctx: &Context, name: &str, how: ImageDelete) -> Result<()>;

    async fn namespace(&self, name: &str) -> Result<NamespaceInfo>;
    async fn namespaces(&self) -> Result<Vec<NamespaceInfo>>;
    async fn create_namespace(&self, name: &str, labels: Labels) -> Result<NamespaceInfo>;
    async fn update_namespace(
        &self,
        name: &str,
        labels: Labels,
        paths: &[String],
    ) -> Result<NamespaceInfo>;
    async fn delete_namespace(&self, name: &str) -> Result<()>;

    async fn create_lease(&self, ctx: &Context, id: &str, labels: Labels) -> Result<Lease>;
    async fn delete_lease(&self, ctx: &Context, id: &str, synchronous: bool) -> Result<()>;
    async fn leases(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Lease>>;
    async fn add_resource(&self, ctx: &Context, lease: &str, resource: Resource) -> Result<()>;
    async fn delete_resource(&self, ctx: &Context, lease: &str, resource: Resource) -> Result<()>;
    async fn resources(&self, ctx: &Context, lease: &str) -> Result<Vec<Resource>>;

    async fn sandbox(&self, ctx: &Context, id: &str) -> Result<Sandbox>;
    async fn sandboxes(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Sandbox>>;
    async fn create_sandbox(&self, ctx: &Context, sandbox: Sandbox) -> Result<Sandbox>;
    async fn update_sandbox(
        &self,
        ctx: &Context,
        sandbox: Sandbox,
        paths: &[String],
    ) -> Result<Sandbox>;
    async fn delete_sandbox(&self, ctx: &Context, id: &str) -> Result<()>;

    /// Writes a blob in one go.
    async fn write_blob(
        &self,
        ctx: &Context,
        reference: &str,
        data: &[u8],
        labels: Labels,
    ) -> Result<Digest>;
    async fn blob(&self, ctx: &Context, digest: &Digest) -> Result<ContentInfo>;
    async fn blobs(&self, ctx: &Context, filters: &[String]) -> Result<Vec<ContentInfo>>;
    async fn update_blob(
        &self,
        ctx: &Context,
        digest: &Digest,
        labels: Labels,
        paths: &[String],
    ) -> Result<ContentInfo>;
    async fn delete_blob(&self, ctx: &Context, digest: &Digest) -> Result<()>;
}

/// What a subject is compared by, where releases of containerd differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// Ours: as the current containerd, and what COMPATIBILITY.md adds.
    #[default]
    Current,
    /// containerd 2.x.
    V2,
    /// containerd 1.6, which lacks sandboxes, filters on annotations and source dates, and is
    /// laxer in places.
    V16,
}

impl Release {
    fn is_current(self) -> bool {
        self != Self::V16
    }
}

/// Runs every case of the metadata store.
pub async fn metadata(subject: &dyn Subject, release: Release) {
    containers::run(subject, release).await;
    images::run(subject, release).await;
    namespaces::run(subject, release).await;
    content::run(subject).await;
    if release.is_current() {
        sandboxes::run(subject, release).await;
    }
}

/// Runs every case of the lease manager.
pub async fn leases(subject: &dyn Subject, release: Release) {
    leases::run(subject, release).await;
}

fn ctx(namespace: &str) -> Context {
    Context::new(Namespace::new(namespace).expect("the suite's namespaces are valid"))
}

fn map(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn list(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|p| (*p).to_owned()).collect()
}

fn any(value: &str) -> Any {
    Any { type_url: "t".to_owned(), value: value.as_bytes().to_vec() }
}

fn resource(kind: &str, id: &str) -> Resource {
    Resource { kind: kind.to_owned(), id: id.to_owned() }
}

/// A label that no object may have.
fn too_long() -> Labels {
    map(&[("k", &"v".repeat(gantry_core::labels::LABEL_LEN_MAX))])
}

/// The longest label an object may have.
fn just_right() -> Labels {
    map(&[("k", &"v".repeat(gantry_core::labels::LABEL_LEN_MAX - 1))])
}
