//! The image records.

use std::time::SystemTime;

use gantry_api::containerd::services::images::v1 as wire;
use gantry_api::containerd::services::images::v1::images_client::ImagesClient;
use gantry_core::{Descriptor, Labels};
use gantry_errdefs::Result;

use crate::client::{handle, service};
use crate::convert::{
    descriptor, descriptor_out, label_map, label_mask, labels, required, status, time,
};

handle! {
    /// The images service: names that point to content.
    Images, images
}

/// A name and what it points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// The full reference.
    pub name: String,
    /// Manifest or index.
    pub target: Descriptor,
    /// Labels.
    pub labels: Labels,
    /// When the record was made.
    pub created_at: SystemTime,
    /// When it was changed last.
    pub updated_at: SystemTime,
}

impl ImageRecord {
    /// A record to create.
    pub fn new(name: impl Into<String>, target: Descriptor) -> Self {
        Self {
            name: name.into(),
            target,
            labels: Labels::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        }
    }
}

impl Images {
    /// The image of exactly that name.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, name: &str) -> Result<ImageRecord> {
        let request = wire::GetImageRequest { name: name.to_owned() };
        let answer = service!(self.client, ImagesClient)
            .get(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        record(required(answer.image, "the image")?)
    }

    /// The images that match any of `filters`; all when there are none.
    ///
    /// # Errors
    /// InvalidArgument for a bad filter.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<ImageRecord>> {
        let request = wire::ListImagesRequest { filters: filters.to_vec() };
        let answer = service!(self.client, ImagesClient)
            .list(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        answer.images.into_iter().map(record).collect()
    }

    /// Makes a record.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument for a bad target or label.
    pub async fn create(&self, image: &ImageRecord) -> Result<ImageRecord> {
        let request =
            wire::CreateImageRequest { image: Some(wire_image(image)), source_date_epoch: None };
        let answer = service!(self.client, ImagesClient)
            .create(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        record(required(answer.image, "the image")?)
    }

    /// Changes the fields named by `mask` (`target`, `labels`, `labels.KEY`); all without one.
    ///
    /// # Errors
    /// NotFound; InvalidArgument.
    pub async fn update(&self, image: &ImageRecord, mask: &[String]) -> Result<ImageRecord> {
        let update_mask =
            (!mask.is_empty()).then(|| prost_types::FieldMask { paths: mask.to_vec() });
        self.update_masked(image, update_mask).await
    }

    /// Makes the record, or points an existing one to the new target.
    ///
    /// # Errors
    /// InvalidArgument.
    pub async fn create_or_update(&self, image: &ImageRecord) -> Result<ImageRecord> {
        match self.create(image).await {
            Err(e) if e.is_already_exists() => {
                let mut mask = vec!["target".to_owned()];
                mask.extend(image.labels.keys().map(|k| format!("labels.{k}")));
                self.update(image, &mask).await
            }
            other => other,
        }
    }

    /// Sets labels; an empty value removes one.
    ///
    /// # Errors
    /// NotFound.
    pub async fn set_labels(&self, name: &str, new: &Labels) -> Result<ImageRecord> {
        let mut image = self.get(name).await?;
        image.labels.clone_from(new);
        self.update_masked(&image, Some(label_mask(new.keys()))).await
    }

    /// Removes a record. With `sync`, returns after a full garbage collection.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, name: &str, sync: bool) -> Result<()> {
        let request = wire::DeleteImageRequest { name: name.to_owned(), sync, target: None };
        service!(self.client, ImagesClient)
            .delete(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    async fn update_masked(
        &self,
        image: &ImageRecord,
        update_mask: Option<prost_types::FieldMask>,
    ) -> Result<ImageRecord> {
        let request = wire::UpdateImageRequest {
            image: Some(wire_image(image)),
            update_mask,
            source_date_epoch: None,
        };
        let answer = service!(self.client, ImagesClient)
            .update(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        record(required(answer.image, "the image")?)
    }
}

fn record(image: wire::Image) -> Result<ImageRecord> {
    Ok(ImageRecord {
        target: descriptor(required(image.target, "the image's target")?)?,
        name: image.name,
        labels: labels(image.labels),
        created_at: time(image.created_at),
        updated_at: time(image.updated_at),
    })
}

fn wire_image(image: &ImageRecord) -> wire::Image {
    wire::Image {
        name: image.name.clone(),
        labels: label_map(&image.labels),
        target: Some(descriptor_out(&image.target)),
        created_at: None,
        updated_at: None,
    }
}
