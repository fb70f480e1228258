//! Services of the program's own instead of the daemon's.

use std::sync::{Arc, Mutex};

use gantry_client::api::containerd::services::images::v1 as wire;
use gantry_client::api::containerd::services::images::v1::images_server::{Images, ImagesServer};
use gantry_client::api::containerd::services::version::v1 as version;
use gantry_client::api::containerd::services::version::v1::version_server::{
    Version, VersionServer,
};
use gantry_client::core::{Descriptor, Digest};
use gantry_client::{Client, Error, ImageRecord, Stdio};
use gantry_testkit::Daemon;
use tonic::{Request, Response, Status};

use crate::support::on_both;

/// Images in memory, by namespace and name.
#[derive(Clone, Default)]
struct Own(Arc<Mutex<Vec<(String, wire::Image)>>>);

fn namespace<T>(request: &Request<T>) -> String {
    let value = request.metadata().get("containerd-namespace").expect("a namespace");
    value.to_str().unwrap().to_owned()
}

#[tonic::async_trait]
impl Images for Own {
    async fn get(
        &self,
        request: Request<wire::GetImageRequest>,
    ) -> Result<Response<wire::GetImageResponse>, Status> {
        let (space, name) = (namespace(&request), request.into_inner().name);
        let all = self.0.lock().unwrap();
        let found = all.iter().find(|(n, i)| *n == space && i.name == name);
        match found {
            Some((_, image)) => {
                Ok(Response::new(wire::GetImageResponse { image: Some(image.clone()) }))
            }
            None => Err(Error::not_found(format!("image {name:?}")).into()),
        }
    }

    async fn list(
        &self,
        request: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        let space = namespace(&request);
        let all = self.0.lock().unwrap();
        let images = all.iter().filter(|(n, _)| *n == space).map(|(_, i)| i.clone()).collect();
        Ok(Response::new(wire::ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<wire::CreateImageRequest>,
    ) -> Result<Response<wire::CreateImageResponse>, Status> {
        let space = namespace(&request);
        let image = request.into_inner().image.expect("an image");
        self.0.lock().unwrap().push((space, image.clone()));
        Ok(Response::new(wire::CreateImageResponse { image: Some(image) }))
    }

    async fn update(
        &self,
        _: Request<wire::UpdateImageRequest>,
    ) -> Result<Response<wire::UpdateImageResponse>, Status> {
        Err(Error::unimplemented("update").into())
    }

    async fn delete(&self, _: Request<wire::DeleteImageRequest>) -> Result<Response<()>, Status> {
        Err(Error::permission_denied("images stay").into())
    }
}

#[tonic::async_trait]
impl Version for Own {
    async fn version(&self, _: Request<()>) -> Result<Response<version::VersionResponse>, Status> {
        let (version, revision) = ("own".to_owned(), String::new());
        Ok(Response::new(version::VersionResponse { version, revision }))
    }
}

#[tokio::test]
async fn services_of_ones_own_need_no_daemon() {
    let client = Client::without_daemon().with_service(ImagesServer::new(Own::default()));
    let target = Descriptor::new("x", Digest::of(b"x"), 1);
    let record = ImageRecord::new("example.com/i:1", target.clone());
    client.images().create(&record).await.unwrap();
    assert_eq!(client.image("example.com/i:1").await.unwrap().target(), &target);
    assert_eq!(client.list_images(&[]).await.unwrap().len(), 1);
    // Namespaces and errors pass through.
    assert!(client.in_namespace("other").list_images(&[]).await.unwrap().is_empty());
    assert!(client.image("example.com/i:2").await.unwrap_err().is_not_found());
    let refused = client.images().delete("x", false).await.unwrap_err();
    assert!(refused.is_permission_denied(), "{refused:?}");
    // Nobody answers for the rest.
    assert!(client.version().await.unwrap_err().is_unimplemented());
    assert!(client.leases().list(&[]).await.unwrap_err().is_unimplemented());
    let client = client.with_service(VersionServer::new(Own::default()));
    assert_eq!(client.version().await.unwrap().version, "own");
    assert_eq!(client.list_images(&[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_service_is_replaced_and_the_others_are_the_daemons() {
    let client = Client::connect("/no/such/socket").unwrap();
    let client = client.with_service(VersionServer::new(Own::default()));
    assert_eq!(client.version().await.unwrap().version, "own");
    assert!(client.images().list(&[]).await.unwrap_err().is_unavailable());
}

/// Images are kept elsewhere; everything else is the daemon's, and a container of such an image
/// runs.
async fn own_images_story(_: &mut Daemon, client: Client) {
    let source = gantry_testkit::Image::busybox();
    let guard = client.leases().guard().await.unwrap();
    let own = guard.client().with_service(ImagesServer::new(Own::default()));
    for descriptor in source.descriptors() {
        let bytes = source.blob(&descriptor.digest).to_vec().into();
        own.content().write_blob(descriptor, bytes, &Default::default()).await.unwrap();
    }
    let record = ImageRecord::new("own/image", source.top().clone());
    own.images().create(&record).await.unwrap();
    assert!(client.image("own/image").await.unwrap_err().is_not_found());
    let image = own.image("own/image").await.unwrap();
    image.unpack("overlayfs").await.unwrap();
    let container = own
        .container_builder("c")
        .from_image(&image)
        .new_snapshot("c")
        .spec_option(|spec| spec.args(["sh", "-c", "exit 4"]))
        .create()
        .await
        .unwrap();
    assert_eq!(container.image().await.unwrap().target().digest, source.top().digest);
    let task = container.new_task(&Stdio::null()).create().await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().code, 4);
    task.delete().await.unwrap();
    container.delete(true).await.unwrap();
    let id = guard.id().to_owned();
    guard.release().await.unwrap();
    assert!(client.leases().resources(&id).await.unwrap_err().is_not_found());
}

on_both!(own_images_story, root_own_image_store_on_containerd, root_own_image_store_on_gantryd);
