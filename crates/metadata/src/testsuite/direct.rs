//! The store itself as a subject.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_content::WriterOptions;
use gantry_core::{Context, Digest, Labels};
use gantry_errdefs::Result;

use super::Subject;
use crate::{
    Container, ContentInfo, Db, Image, ImageDelete, ImageUpdate, Lease, NamespaceInfo, Resource,
    Sandbox,
};

#[async_trait]
impl Subject for Db {
    async fn container(&self, ctx: &Context, id: &str) -> Result<Container> {
        Db::containers(self).get(ctx, id).await
    }

    async fn containers(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Container>> {
        Db::containers(self).list(ctx, filters).await
    }

    async fn create_container(&self, ctx: &Context, container: Container) -> Result<Container> {
        Db::containers(self).create(ctx, container).await
    }

    async fn update_container(
        &self,
        ctx: &Context,
        container: Container,
        paths: &[String],
    ) -> Result<Container> {
        Db::containers(self).update(ctx, container, paths).await
    }

    async fn delete_container(&self, ctx: &Context, id: &str) -> Result<()> {
        Db::containers(self).delete(ctx, id).await
    }

    async fn image(&self, ctx: &Context, name: &str) -> Result<Image> {
        Db::images(self).get(ctx, name).await
    }

    async fn images(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Image>> {
        Db::images(self).list(ctx, filters).await
    }

    async fn create_image(
        &self,
        ctx: &Context,
        image: Image,
        at: Option<SystemTime>,
    ) -> Result<Image> {
        Db::images(self).create(ctx, image, at).await
    }

    async fn update_image(
        &self,
        ctx: &Context,
        image: ImageUpdate,
        paths: &[String],
        at: Option<SystemTime>,
    ) -> Result<Image> {
        Db::images(self).update(ctx, image, paths, at).await
    }

    async fn delete_image(&self, ctx: &Context, name: &str, how: ImageDelete) -> Result<()> {
        Db::images(self).delete(ctx, name, how).await
    }

    async fn namespace(&self, name: &str) -> Result<NamespaceInfo> {
        Db::namespaces(self).get(name).await
    }

    async fn namespaces(&self) -> Result<Vec<NamespaceInfo>> {
        Db::namespaces(self).list().await
    }

    async fn create_namespace(&self, name: &str, labels: Labels) -> Result<NamespaceInfo> {
        Db::namespaces(self).create(name, labels).await
    }

    async fn update_namespace(
        &self,
        name: &str,
        labels: Labels,
        paths: &[String],
    ) -> Result<NamespaceInfo> {
        Db::namespaces(self).update(name, labels, paths).await
    }

    async fn delete_namespace(&self, name: &str) -> Result<()> {
        Db::namespaces(self).delete(name).await
    }

    async fn create_lease(&self, ctx: &Context, id: &str, labels: Labels) -> Result<Lease> {
        Db::leases(self).create(ctx, id, labels).await
    }

    async fn delete_lease(&self, ctx: &Context, id: &str, synchronous: bool) -> Result<()> {
        Db::leases(self).delete(ctx, id, synchronous).await
    }

    async fn leases(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Lease>> {
        Db::leases(self).list(ctx, filters).await
    }

    async fn add_resource(&self, ctx: &Context, lease: &str, resource: Resource) -> Result<()> {
        Db::leases(self).add_resource(ctx, lease, resource).await
    }

    async fn delete_resource(&self, ctx: &Context, lease: &str, resource: Resource) -> Result<()> {
        Db::leases(self).delete_resource(ctx, lease, resource).await
    }

    async fn resources(&self, ctx: &Context, lease: &str) -> Result<Vec<Resource>> {
        Db::leases(self).resources(ctx, lease).await
    }

    async fn sandbox(&self, ctx: &Context, id: &str) -> Result<Sandbox> {
        Db::sandboxes(self).get(ctx, id).await
    }

    async fn sandboxes(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Sandbox>> {
        Db::sandboxes(self).list(ctx, filters).await
    }

    async fn create_sandbox(&self, ctx: &Context, sandbox: Sandbox) -> Result<Sandbox> {
        Db::sandboxes(self).create(ctx, sandbox).await
    }

    async fn update_sandbox(
        &self,
        ctx: &Context,
        sandbox: Sandbox,
        paths: &[String],
    ) -> Result<Sandbox> {
        Db::sandboxes(self).update(ctx, sandbox, paths).await
    }

    async fn delete_sandbox(&self, ctx: &Context, id: &str) -> Result<()> {
        Db::sandboxes(self).delete(ctx, id).await
    }

    async fn write_blob(
        &self,
        ctx: &Context,
        reference: &str,
        data: &[u8],
        labels: Labels,
    ) -> Result<Digest> {
        let expected = Digest::of(data);
        let options = WriterOptions {
            reference: reference.to_owned(),
            total: data.len() as u64,
            expected: Some(expected.clone()),
        };
        let mut writer = self.content().writer(ctx, options).await?;
        if writer.status().offset == 0 {
            writer.write(Bytes::copy_from_slice(data)).await?;
        }
        writer.commit(data.len() as u64, Some(&expected), labels).await
    }

    async fn blob(&self, ctx: &Context, digest: &Digest) -> Result<ContentInfo> {
        self.content().info(ctx, digest).await
    }

    async fn blobs(&self, ctx: &Context, filters: &[String]) -> Result<Vec<ContentInfo>> {
        self.content().list(ctx, filters).await
    }

    async fn update_blob(
        &self,
        ctx: &Context,
        digest: &Digest,
        labels: Labels,
        paths: &[String],
    ) -> Result<ContentInfo> {
        self.content().update(ctx, digest, labels, paths).await
    }

    async fn delete_blob(&self, ctx: &Context, digest: &Digest) -> Result<()> {
        self.content().delete(ctx, digest).await
    }
}
