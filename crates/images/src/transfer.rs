//! The transfer of images between registries, the image store and archives.

use std::fmt;

use gantry_core::platforms::Matcher;
use gantry_core::{Context, Descriptor, Labels, Platform};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::{Db, Image, ImageUpdate};
use gantry_registry::Resolver;

use crate::progress::{Progress, ProgressSink, Stage};
use crate::pull::DOWNLOADS_MAX_DEFAULT;
use crate::push::UPLOADS_MAX_DEFAULT;
use crate::unpack::Unpacker;

/// How often an image record is written again because someone else created or deleted it between.
const STORE_ATTEMPTS_MAX: usize = 5;

/// Settings of all transfers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferOptions {
    /// Blobs fetched at once per pull.
    pub downloads_max: usize,
    /// Blobs pushed at once per push.
    pub uploads_max: usize,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self { downloads_max: DOWNLOADS_MAX_DEFAULT, uploads_max: UPLOADS_MAX_DEFAULT }
    }
}

/// Moves images. Cheap to clone; clones share connections and know of each other's unpacking.
#[derive(Clone)]
pub struct Transfer {
    db: Db,
    unpacker: Unpacker,
    resolver: Resolver,
    options: TransferOptions,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What an image becomes in the image store, and what of it is stored.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Name of the image record.
    pub name: String,
    /// Labels of the image record.
    pub labels: Labels,
    /// Platforms whose content is wanted, best first; empty for every platform.
    pub platforms: Vec<Platform>,
    /// Fetch manifests and configs of other platforms too.
    pub all_metadata: bool,
    /// How many manifests of an index at most, best first; 0 for no bound.
    pub manifest_limit: usize,
    /// Further names for the same image.
    pub extra_names: Vec<String>,
    /// Where to unpack it.
    pub unpacks: Vec<UnpackTarget>,
}

impl StoreOptions {
    /// Everything of every platform under `name`, not unpacked.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Which platforms are wanted.
    pub fn matcher(&self) -> Matcher {
        if self.platforms.is_empty() { Matcher::all() } else { Matcher::ordered(&self.platforms) }
    }
}

/// A snapshotter to unpack an image to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackTarget {
    /// The platforms that are unpacked.
    pub matcher: Matcher,
    /// Name of the snapshotter.
    pub snapshotter: String,
}

impl Transfer {
    /// Transfers into and out of `db`, unpacking with `unpacker`, reaching registries through
    /// `resolver` unless a transfer says otherwise.
    pub fn new(db: Db, unpacker: Unpacker, resolver: Resolver, options: TransferOptions) -> Self {
        Self { db, unpacker, resolver, options }
    }

    /// The metadata store.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// The unpacker.
    pub fn unpacker(&self) -> &Unpacker {
        &self.unpacker
    }

    /// The default way to registries. Derive from it ([`Resolver::with`]) to share connections
    /// under other credentials or hosts.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The settings.
    pub fn options(&self) -> &TransferOptions {
        &self.options
    }

    /// Gives the image `source` the name `store.name` (and `store.extra_names`) with
    /// `store.labels`, replacing images of those names.
    ///
    /// # Errors
    /// NotFound for the source; InvalidArgument for a bad name or label.
    pub async fn tag(
        &self,
        ctx: &Context,
        source: &str,
        store: &StoreOptions,
        progress: &ProgressSink,
    ) -> Result<Vec<Image>> {
        let image = self.db.images().get(ctx, source).await?;
        self.store_image(ctx, store, &image.target, progress).await
    }

    /// Creates or replaces the image records of `store` with the target `top`; in the order of
    /// the names.
    ///
    /// # Errors
    /// InvalidArgument for a bad name or label.
    pub(crate) async fn store_image(
        &self,
        ctx: &Context,
        store: &StoreOptions,
        top: &Descriptor,
        progress: &ProgressSink,
    ) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        // What an index says of a manifest is no part of the image itself.
        let target = Descriptor { platform: None, ..top.clone() };
        for name in std::iter::once(&store.name).chain(&store.extra_names) {
            let image = Image { labels: store.labels.clone(), ..Image::new(name, target.clone()) };
            let image = self.create_or_update(ctx, image).await?;
            let saved = Progress::named(Stage::Saved, name);
            progress.send(Progress { descriptor: Some(target.clone()), ..saved });
            images.push(image);
        }
        Ok(images)
    }

    async fn create_or_update(&self, ctx: &Context, image: Image) -> Result<Image> {
        let images = self.db.images();
        let update = ImageUpdate {
            name: image.name.clone(),
            labels: image.labels.clone(),
            target: Some(image.target.clone()),
        };
        for _ in 0..STORE_ATTEMPTS_MAX {
            match images.create(ctx, image.clone(), None).await {
                Err(e) if e.is_already_exists() => {}
                created => return created.context(|| format!("image {:?}", image.name)),
            }
            match images.update(ctx, update.clone(), &[], None).await {
                Err(e) if e.is_not_found() => {}
                updated => return updated,
            }
        }
        Err(Error::aborted(format!("image {:?}: it keeps coming and going", image.name)))
    }
}
