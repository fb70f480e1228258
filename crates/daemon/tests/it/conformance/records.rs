//! The daemon's record services as a subject of the metadata suite.

use std::time::SystemTime;

use async_trait::async_trait;
use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::content::v1 as content;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::containerd::services::images::v1 as images;
use gantry_api::containerd::services::images::v1::images_client::ImagesClient;
use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::services::namespaces::v1 as namespaces;
use gantry_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_api::containerd::services::sandbox::v1 as sandboxes;
use gantry_api::containerd::services::sandbox::v1::store_client::StoreClient;
use gantry_api::containerd::types;
use gantry_core::{Context, Descriptor, Digest, Labels};
use gantry_errdefs::Result;
use gantry_metadata::testsuite::Subject;
use gantry_metadata::{
    Container, ContentInfo, Image, ImageDelete, ImageUpdate, Lease, NamespaceInfo, Resource,
    Runtime, Sandbox,
};
use tonic::transport::Channel;

use crate::harness::in_ns;

use super::{any, field, labels, map, mask, time, to_any, with};

/// A client of everything that keeps records.
pub(super) struct Client(pub(super) Channel);

impl Client {
    fn of_containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.0.clone())
    }

    fn of_images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.0.clone())
    }

    fn of_namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.0.clone())
    }

    fn of_leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.0.clone())
    }

    fn of_sandboxes(&self) -> StoreClient<Channel> {
        StoreClient::new(self.0.clone())
    }

    fn of_content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.0.clone())
    }
}

fn container(wire: containers::Container) -> Container {
    let runtime = wire.runtime.unwrap_or_default();
    Container {
        id: wire.id,
        labels: labels(wire.labels),
        image: wire.image,
        runtime: Runtime { name: runtime.name, options: runtime.options.map(any) },
        spec: wire.spec.map(any),
        snapshotter: wire.snapshotter,
        snapshot_key: wire.snapshot_key,
        created_at: time(wire.created_at),
        updated_at: time(wire.updated_at),
        extensions: wire.extensions.into_iter().map(|(k, v)| (k, any(v))).collect(),
        sandbox_id: wire.sandbox,
    }
}

fn to_container(c: Container) -> containers::Container {
    let options = c.runtime.options.map(to_any);
    containers::Container {
        id: c.id,
        labels: map(c.labels),
        image: c.image,
        runtime: Some(containers::container::Runtime { name: c.runtime.name, options }),
        spec: c.spec.map(to_any),
        snapshotter: c.snapshotter,
        snapshot_key: c.snapshot_key,
        extensions: c.extensions.into_iter().map(|(k, v)| (k, to_any(v))).collect(),
        sandbox: c.sandbox_id,
        ..Default::default()
    }
}

fn descriptor(wire: types::Descriptor) -> Result<Descriptor> {
    let mut made = Descriptor::new(wire.media_type, wire.digest.parse()?, wire.size);
    made.annotations = labels(wire.annotations);
    Ok(made)
}

fn to_descriptor(d: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: d.media_type,
        digest: d.digest.into(),
        size: d.size,
        annotations: map(d.annotations),
    }
}

fn image(wire: images::Image) -> Result<Image> {
    let mut image = Image::new(wire.name, descriptor(field(wire.target)?)?);
    image.labels = labels(wire.labels);
    (image.created_at, image.updated_at) = (time(wire.created_at), time(wire.updated_at));
    Ok(image)
}

fn lease(wire: leases::Lease) -> Lease {
    Lease { id: wire.id, created_at: time(wire.created_at), labels: labels(wire.labels) }
}

fn namespace(wire: namespaces::Namespace) -> NamespaceInfo {
    NamespaceInfo { name: wire.name, labels: labels(wire.labels) }
}

fn to_resource(resource: Resource) -> Option<leases::Resource> {
    Some(leases::Resource { id: resource.id, r#type: resource.kind })
}

fn blob(wire: content::Info) -> Result<ContentInfo> {
    Ok(ContentInfo {
        digest: wire.digest.parse()?,
        size: u64::try_from(wire.size).unwrap(),
        created_at: time(wire.created_at),
        updated_at: time(wire.updated_at),
        labels: labels(wire.labels),
    })
}

fn sandbox(wire: types::Sandbox) -> Sandbox {
    let runtime = wire.runtime.unwrap_or_default();
    Sandbox {
        id: wire.sandbox_id,
        labels: labels(wire.labels),
        runtime: Runtime { name: runtime.name, options: runtime.options.map(any) },
        spec: wire.spec.map(any),
        sandboxer: wire.sandboxer,
        created_at: time(wire.created_at),
        updated_at: time(wire.updated_at),
        extensions: wire.extensions.into_iter().map(|(k, v)| (k, any(v))).collect(),
    }
}

fn to_sandbox(s: Sandbox) -> Option<types::Sandbox> {
    let options = s.runtime.options.map(to_any);
    Some(types::Sandbox {
        sandbox_id: s.id,
        runtime: Some(types::sandbox::Runtime { name: s.runtime.name, options }),
        spec: s.spec.map(to_any),
        labels: map(s.labels),
        extensions: s.extensions.into_iter().map(|(k, v)| (k, to_any(v))).collect(),
        sandboxer: s.sandboxer,
        ..Default::default()
    })
}

#[async_trait]
impl Subject for Client {
    async fn container(&self, ctx: &Context, id: &str) -> Result<Container> {
        let request = containers::GetContainerRequest { id: id.into() };
        let answer = self.of_containers().get(with(ctx, request)).await?.into_inner();
        Ok(container(field(answer.container)?))
    }

    async fn containers(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Container>> {
        let request = containers::ListContainersRequest { filters: filters.to_vec() };
        let listed = self.of_containers().list(with(ctx, request.clone())).await;
        let streamed = self.of_containers().list_stream(with(ctx, request)).await?;
        let mut streamed = streamed.into_inner();
        // Both ways to a list agree, in what they refuse as well.
        let mut one_by_one = Vec::new();
        let end = loop {
            match streamed.message().await {
                Ok(Some(message)) => one_by_one.push(container(field(message.container)?)),
                Ok(None) => break None,
                Err(status) => break Some(status.code()),
            }
        };
        assert_eq!(end, listed.as_ref().err().map(tonic::Status::code));
        let all: Vec<_> = listed?.into_inner().containers.into_iter().map(container).collect();
        assert_eq!(all, one_by_one);
        Ok(all)
    }

    async fn create_container(&self, ctx: &Context, made: Container) -> Result<Container> {
        let request = containers::CreateContainerRequest { container: Some(to_container(made)) };
        let answer = self.of_containers().create(with(ctx, request)).await?.into_inner();
        Ok(container(field(answer.container)?))
    }

    async fn update_container(
        &self,
        ctx: &Context,
        update: Container,
        paths: &[String],
    ) -> Result<Container> {
        let container_ = Some(to_container(update));
        let request =
            containers::UpdateContainerRequest { container: container_, update_mask: mask(paths) };
        let answer = self.of_containers().update(with(ctx, request)).await?.into_inner();
        Ok(container(field(answer.container)?))
    }

    async fn delete_container(&self, ctx: &Context, id: &str) -> Result<()> {
        let request = containers::DeleteContainerRequest { id: id.into() };
        self.of_containers().delete(with(ctx, request)).await?;
        Ok(())
    }

    async fn image(&self, ctx: &Context, name: &str) -> Result<Image> {
        let request = images::GetImageRequest { name: name.into() };
        let answer = self.of_images().get(with(ctx, request)).await?.into_inner();
        image(field(answer.image)?)
    }

    async fn images(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Image>> {
        let request = images::ListImagesRequest { filters: filters.to_vec() };
        let answer = self.of_images().list(with(ctx, request)).await?.into_inner();
        answer.images.into_iter().map(image).collect()
    }

    async fn create_image(
        &self,
        ctx: &Context,
        made: Image,
        at: Option<SystemTime>,
    ) -> Result<Image> {
        let wire = images::Image {
            name: made.name,
            labels: map(made.labels),
            target: Some(to_descriptor(made.target)),
            ..Default::default()
        };
        let source_date_epoch = at.map(Into::into);
        let request = images::CreateImageRequest { image: Some(wire), source_date_epoch };
        let answer = self.of_images().create(with(ctx, request)).await?.into_inner();
        image(field(answer.image)?)
    }

    async fn update_image(
        &self,
        ctx: &Context,
        update: ImageUpdate,
        paths: &[String],
        at: Option<SystemTime>,
    ) -> Result<Image> {
        let wire = images::Image {
            name: update.name,
            labels: map(update.labels),
            // Go clients always send one.
            target: Some(update.target.map(to_descriptor).unwrap_or_default()),
            ..Default::default()
        };
        let request = images::UpdateImageRequest {
            image: Some(wire),
            update_mask: mask(paths),
            source_date_epoch: at.map(Into::into),
        };
        let answer = self.of_images().update(with(ctx, request)).await?.into_inner();
        image(field(answer.image)?)
    }

    async fn delete_image(&self, ctx: &Context, name: &str, how: ImageDelete) -> Result<()> {
        let target = how
            .target
            .map(|digest| types::Descriptor { digest: digest.into(), ..Default::default() });
        let request =
            images::DeleteImageRequest { name: name.into(), sync: how.synchronous, target };
        self.of_images().delete(with(ctx, request)).await?;
        Ok(())
    }

    async fn namespace(&self, name: &str) -> Result<NamespaceInfo> {
        let request = namespaces::GetNamespaceRequest { name: name.into() };
        let answer = self.of_namespaces().get(request).await?.into_inner();
        Ok(namespace(field(answer.namespace)?))
    }

    async fn namespaces(&self) -> Result<Vec<NamespaceInfo>> {
        let request = namespaces::ListNamespacesRequest::default();
        let answer = self.of_namespaces().list(request).await?.into_inner();
        Ok(answer.namespaces.into_iter().map(namespace).collect())
    }

    // The older daemon wants a namespace header where it publishes an event.
    async fn create_namespace(&self, name: &str, labels: Labels) -> Result<NamespaceInfo> {
        let made = namespaces::Namespace { name: name.into(), labels: map(labels) };
        let request = namespaces::CreateNamespaceRequest { namespace: Some(made) };
        let answer = self.of_namespaces().create(in_ns("suite", request)).await?.into_inner();
        Ok(namespace(field(answer.namespace)?))
    }

    async fn update_namespace(
        &self,
        name: &str,
        labels: Labels,
        paths: &[String],
    ) -> Result<NamespaceInfo> {
        let update = namespaces::Namespace { name: name.into(), labels: map(labels) };
        let request = namespaces::UpdateNamespaceRequest {
            namespace: Some(update),
            update_mask: mask(paths),
        };
        let answer = self.of_namespaces().update(in_ns("suite", request)).await?.into_inner();
        // containerd's is empty.
        Ok(namespace(answer.namespace.unwrap_or_default()))
    }

    async fn delete_namespace(&self, name: &str) -> Result<()> {
        let request = namespaces::DeleteNamespaceRequest { name: name.into() };
        self.of_namespaces().delete(in_ns("suite", request)).await?;
        Ok(())
    }

    async fn create_lease(&self, ctx: &Context, id: &str, labels: Labels) -> Result<Lease> {
        let request = leases::CreateRequest { id: id.into(), labels: map(labels) };
        let answer = self.of_leases().create(with(ctx, request)).await?.into_inner();
        Ok(lease(field(answer.lease)?))
    }

    async fn delete_lease(&self, ctx: &Context, id: &str, synchronous: bool) -> Result<()> {
        let request = leases::DeleteRequest { id: id.into(), sync: synchronous };
        self.of_leases().delete(with(ctx, request)).await?;
        Ok(())
    }

    async fn leases(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Lease>> {
        let request = leases::ListRequest { filters: filters.to_vec() };
        let answer = self.of_leases().list(with(ctx, request)).await?.into_inner();
        Ok(answer.leases.into_iter().map(lease).collect())
    }

    async fn add_resource(&self, ctx: &Context, lease: &str, resource: Resource) -> Result<()> {
        let resource = to_resource(resource);
        let request = leases::AddResourceRequest { id: lease.into(), resource };
        self.of_leases().add_resource(with(ctx, request)).await?;
        Ok(())
    }

    async fn delete_resource(&self, ctx: &Context, lease: &str, resource: Resource) -> Result<()> {
        let resource = to_resource(resource);
        let request = leases::DeleteResourceRequest { id: lease.into(), resource };
        self.of_leases().delete_resource(with(ctx, request)).await?;
        Ok(())
    }

    async fn resources(&self, ctx: &Context, lease: &str) -> Result<Vec<Resource>> {
        let request = leases::ListResourcesRequest { id: lease.into() };
        let answer = self.of_leases().list_resources(with(ctx, request)).await?.into_inner();
        let resources = answer.resources.into_iter();
        Ok(resources.map(|r| Resource { kind: r.r#type, id: r.id }).collect())
    }

    async fn sandbox(&self, ctx: &Context, id: &str) -> Result<Sandbox> {
        let request = sandboxes::StoreGetRequest { sandbox_id: id.into() };
        let answer = self.of_sandboxes().get(with(ctx, request)).await?.into_inner();
        Ok(sandbox(field(answer.sandbox)?))
    }

    async fn sandboxes(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Sandbox>> {
        let request = sandboxes::StoreListRequest { filters: filters.to_vec() };
        let answer = self.of_sandboxes().list(with(ctx, request)).await?.into_inner();
        Ok(answer.list.into_iter().map(sandbox).collect())
    }

    async fn create_sandbox(&self, ctx: &Context, made: Sandbox) -> Result<Sandbox> {
        let request = sandboxes::StoreCreateRequest { sandbox: to_sandbox(made) };
        let answer = self.of_sandboxes().create(with(ctx, request)).await?.into_inner();
        Ok(sandbox(field(answer.sandbox)?))
    }

    async fn update_sandbox(
        &self,
        ctx: &Context,
        update: Sandbox,
        paths: &[String],
    ) -> Result<Sandbox> {
        let sandbox_ = to_sandbox(update);
        let request = sandboxes::StoreUpdateRequest { sandbox: sandbox_, fields: paths.to_vec() };
        let answer = self.of_sandboxes().update(with(ctx, request)).await?.into_inner();
        Ok(sandbox(field(answer.sandbox)?))
    }

    async fn delete_sandbox(&self, ctx: &Context, id: &str) -> Result<()> {
        let request = sandboxes::StoreDeleteRequest { sandbox_id: id.into() };
        self.of_sandboxes().delete(with(ctx, request)).await?;
        Ok(())
    }

    async fn write_blob(
        &self,
        ctx: &Context,
        reference: &str,
        data: &[u8],
        labels: Labels,
    ) -> Result<Digest> {
        let message = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: reference.into(),
            total: data.len() as i64,
            expected: Digest::of(data).into(),
            data: data.to_vec().into(),
            labels: map(labels),
            ..Default::default()
        };
        let messages = tokio_stream::iter([message]);
        let mut answers = self.of_content().write(with(ctx, messages)).await?.into_inner();
        let mut digest = None;
        // The older daemon sends its last answer twice.
        while let Some(answer) = answers.message().await? {
            digest = Some(answer.digest.parse()?);
        }
        field(digest)
    }

    async fn blob(&self, ctx: &Context, digest: &Digest) -> Result<ContentInfo> {
        let request = content::InfoRequest { digest: digest.to_string() };
        let answer = self.of_content().info(with(ctx, request)).await?.into_inner();
        blob(field(answer.info)?)
    }

    async fn blobs(&self, ctx: &Context, filters: &[String]) -> Result<Vec<ContentInfo>> {
        let request = content::ListContentRequest { filters: filters.to_vec() };
        let mut pages = self.of_content().list(with(ctx, request)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(page) = pages.message().await? {
            for info in page.info {
                all.push(blob(info)?);
            }
        }
        Ok(all)
    }

    async fn update_blob(
        &self,
        ctx: &Context,
        digest: &Digest,
        labels: Labels,
        paths: &[String],
    ) -> Result<ContentInfo> {
        let info = Some(content::Info {
            digest: digest.to_string(),
            labels: map(labels),
            ..Default::default()
        });
        let request = content::UpdateRequest { info, update_mask: mask(paths) };
        let answer = self.of_content().update(with(ctx, request)).await?.into_inner();
        blob(field(answer.info)?)
    }

    async fn delete_blob(&self, ctx: &Context, digest: &Digest) -> Result<()> {
        let request = content::DeleteContentRequest { digest: digest.to_string() };
        self.of_content().delete(with(ctx, request)).await?;
        Ok(())
    }
}
