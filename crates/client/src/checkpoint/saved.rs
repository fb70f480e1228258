//! From an image back to what a container is made of.

use gantry_core::image::Index;
use gantry_core::platforms::Matcher;
use gantry_core::{Any, Descriptor, media_types};
use gantry_errdefs::{Error, Result};
use prost::Message as _;

use super::{
    CRIU_MEDIA_TYPE, IMAGE_ANNOTATIONS, RUNTIME_ANNOTATION, RUNTIME_OPTIONS_MEDIA_TYPE,
    SNAPSHOTTER_ANNOTATION, SPEC_MEDIA_TYPE,
};
use crate::client::Client;
use crate::convert::any;
use crate::image::Image;
use crate::resolved::ResolvedImage;

/// What a checkpoint's index says. Texts are empty where it says nothing.
#[derive(Debug)]
pub(crate) struct Saved {
    name: String,
    index: Index,
    /// Name of the container's image.
    pub(crate) image_name: String,
    /// Name of the container's runtime.
    pub(crate) runtime: String,
    /// Name of the snapshotter of its root filesystem.
    pub(crate) snapshotter: String,
}

impl Image {
    /// The processes in an image that is a checkpoint, for [`crate::TaskBuilder::checkpoint`].
    ///
    /// # Errors
    /// InvalidArgument for an image that is no checkpoint; NotFound for one without processes.
    pub async fn checkpoint_processes(&self) -> Result<Descriptor> {
        Saved::read(self.client(), self).await?.processes()
    }
}

impl Saved {
    /// Reads the index of a checkpoint.
    ///
    /// # Errors
    /// InvalidArgument for an image that is none.
    pub(crate) async fn read(client: &Client, checkpoint: &Image) -> Result<Self> {
        let target = checkpoint.target();
        let no_checkpoint = || {
            Error::invalid_argument(format!("image {:?}: it is no checkpoint", checkpoint.name()))
        };
        if !media_types::is_index(&target.media_type) {
            return Err(no_checkpoint());
        }
        let index = Index::parse(&target.digest, &client.content().read(&target.digest).await?)?;
        let annotation = |name: &str| index.annotations.get(name).cloned().unwrap_or_default();
        let image_name = IMAGE_ANNOTATIONS.map(annotation).into_iter().find(|n| !n.is_empty());
        let saved = Self {
            name: checkpoint.name().to_owned(),
            image_name: image_name.unwrap_or_default(),
            runtime: annotation(RUNTIME_ANNOTATION),
            snapshotter: annotation(SNAPSHOTTER_ANNOTATION),
            index,
        };
        // One of a container without processes has at least a name for its image.
        if saved.image_name.is_empty() && saved.part(CRIU_MEDIA_TYPE).is_none() {
            return Err(no_checkpoint());
        }
        Ok(saved)
    }

    /// The processes.
    ///
    /// # Errors
    /// NotFound when they were left out.
    pub(crate) fn processes(&self) -> Result<Descriptor> {
        self.needed("processes", CRIU_MEDIA_TYPE)
    }

    /// What the container changed of its root filesystem, as a layer; None when that was left out.
    pub(crate) fn changes(&self) -> Option<&Descriptor> {
        self.index.parts().find(|part| media_types::is_layer(&part.media_type))
    }

    /// The container's image: that of the checkpoint, or the one of its name.
    ///
    /// # Errors
    /// As [`Client::resolve_image`].
    pub(crate) async fn image(&self, client: &Client) -> Result<ResolvedImage> {
        let host = Matcher::host();
        match self.index.ranked(&host).first() {
            Some((_, image)) => client.resolve_target(&self.image_name, image, &host).await,
            None => client.resolve_image(&self.image_name, None).await,
        }
    }

    /// The container's spec.
    ///
    /// # Errors
    /// NotFound when the checkpoint has none.
    pub(crate) async fn spec(&self, client: &Client) -> Result<Any> {
        self.message(client, &self.needed("spec", SPEC_MEDIA_TYPE)?).await
    }

    /// The options of its runtime, if it had any.
    ///
    /// # Errors
    /// InvalidArgument when they cannot be read.
    pub(crate) async fn runtime_options(&self, client: &Client) -> Result<Option<Any>> {
        match self.part(RUNTIME_OPTIONS_MEDIA_TYPE) {
            Some(part) => self.message(client, part).await.map(Some),
            None => Ok(None),
        }
    }

    fn part(&self, media_type: &str) -> Option<&Descriptor> {
        self.index.parts().find(|part| part.media_type == media_type)
    }

    fn needed(&self, what: &str, media_type: &str) -> Result<Descriptor> {
        let missing = || Error::not_found(format!("checkpoint {:?}: {what}", self.name));
        self.part(media_type).cloned().ok_or_else(missing)
    }

    async fn message(&self, client: &Client, part: &Descriptor) -> Result<Any> {
        let bytes = client.content().read(&part.digest).await?;
        prost_types::Any::decode(bytes).map(any).map_err(|e| {
            let (name, digest) = (&self.name, &part.digest);
            Error::invalid_argument(format!("checkpoint {name:?}: part {digest}: {e}"))
        })
    }
}
