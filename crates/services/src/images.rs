//! `containerd.services.images.v1`.

use gantry_api::containerd::services::images::v1 as wire;
use gantry_api::containerd::services::images::v1::images_server::Images;
use gantry_images::Verifiers;
use gantry_metadata::{Db, ImageDelete, ImageUpdate};
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// Image records: names for content.
#[derive(Clone, Debug)]
pub struct ImagesService {
    db: Db,
    verifiers: Verifiers,
}

impl ImagesService {
    /// A service over `db`. A record gets a target only if `verifiers` agree: clients that pull by
    /// themselves are held to them as well.
    pub fn new(db: Db, verifiers: Verifiers) -> Self {
        Self { db, verifiers }
    }
}

#[tonic::async_trait]
impl Images for ImagesService {
    async fn get(
        &self,
        request: Request<wire::GetImageRequest>,
    ) -> Result<Response<wire::GetImageResponse>, Status> {
        let ctx = call::context(&request)?;
        let image = self.db.images().get(&ctx, &request.get_ref().name).await?;
        Ok(Response::new(wire::GetImageResponse { image: Some(convert::image_to_wire(image)) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        let ctx = call::context(&request)?;
        let found = self.db.images().list(&ctx, &request.get_ref().filters).await?;
        let images = found.into_iter().map(convert::image_to_wire).collect();
        Ok(Response::new(wire::ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<wire::CreateImageRequest>,
    ) -> Result<Response<wire::CreateImageResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let image = convert::image(call::required(request.image, "image")?)?;
        self.verifiers.check(&image.name, &image.target).await?;
        let at = request.source_date_epoch.map(convert::time);
        let made = self.db.images().create(&ctx, image, at).await?;
        Ok(Response::new(wire::CreateImageResponse { image: Some(convert::image_to_wire(made)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateImageRequest>,
    ) -> Result<Response<wire::UpdateImageResponse>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let image = call::required(request.image, "image")?;
        let update = ImageUpdate {
            name: image.name,
            labels: convert::labels(image.labels),
            // Go clients send a zero target when only labels change; metadata refuses a missing
            // one where the mask asks for it.
            target: image
                .target
                .filter(|t| *t != Default::default())
                .map(convert::descriptor)
                .transpose()?,
        };
        if let Some(target) = &update.target {
            self.verifiers.check(&update.name, target).await?;
        }
        let mask = convert::mask(request.update_mask);
        let at = request.source_date_epoch.map(convert::time);
        let updated = self.db.images().update(&ctx, update, &mask, at).await?;
        let image = Some(convert::image_to_wire(updated));
        Ok(Response::new(wire::UpdateImageResponse { image }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteImageRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let target = match request.target {
            Some(target) if !target.digest.is_empty() => Some(target.digest.parse()?),
            _ => None,
        };
        let options = ImageDelete { target, synchronous: request.sync };
        self.db.images().delete(&ctx, &request.name, options).await?;
        Ok(Response::new(()))
    }
}
