//! The transfer of images between registries, the image store and archives.

mod copy;
mod layer;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use gantry_core::image::{NAME_ANNOTATION, REF_ANNOTATION};
use gantry_core::platforms::Matcher;
use gantry_core::{Context, Descriptor, Digest, Labels, Platform};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_layout::ArchiveOut;
use gantry_metadata::{Db, Image, ImageUpdate};
use gantry_registry::Resolver;
use tokio::io::AsyncRead;

use crate::budget::Budget;
use crate::export::{self, ExportImage, ExportOptions};
use crate::flights::Flights;
use crate::import::{self, ImportOptions};
use crate::lease;
use crate::progress::{Counted, Progress, ProgressSink, Stage};
use crate::pull::DOWNLOADS_MAX_DEFAULT;
use crate::push::UPLOADS_MAX_DEFAULT;
use crate::read::resolve_manifest;
use crate::unpack::Unpacker;
use crate::verifier::Verifiers;

pub use copy::CopyOptions;
pub use layer::LayerSnapshot;
pub use targets::ServedPlatforms;

/// How often an image record is written again because someone else created or deleted it between.
const STORE_ATTEMPTS_MAX: usize = 5;

/// What the bytes of an archive are reported as.
const ARCHIVE: &str = "archive";

/// Settings of all transfers.
#[derive(Clone, Debug)]
pub struct TransferOptions {
    /// Blobs fetched at once per pull.
    pub downloads_max: usize,
    /// Blobs pushed at once per push.
    pub uploads_max: usize,
    /// What all transfers may use together.
    pub budget: Budget,
    /// Who decides which images may be used.
    pub verifiers: Verifiers,
    /// What images may be unpacked to.
    pub served: ServedPlatforms,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            downloads_max: DOWNLOADS_MAX_DEFAULT,
            uploads_max: UPLOADS_MAX_DEFAULT,
            budget: Budget::default(),
            verifiers: Verifiers::default(),
            served: ServedPlatforms::default(),
        }
    }
}

/// Moves images. Cheap to clone; clones share connections and know of each other's unpacking.
#[derive(Clone)]
pub struct Transfer {
    db: Db,
    unpacker: Unpacker,
    resolver: Resolver,
    options: TransferOptions,
    /// Blobs being fetched, whichever namespace wants them.
    downloads: Arc<Flights<Digest>>,
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
    /// Further names; what they mean depends on where the image comes from.
    pub extra_references: Vec<ImageReference>,
    /// Where to unpack it.
    pub unpacks: Vec<UnpackTarget>,
    /// Compress the layers that an archive of docker's holds as plain tars.
    pub compress: bool,
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

/// A name for images, or a rule that makes names for the images of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageReference {
    /// The name, or the prefix.
    pub name: String,
    /// `name` is a prefix for images of an archive that are named by a bare tag.
    pub is_prefix: bool,
    /// With a prefix: take images whose full name has another prefix too.
    pub allow_overwrite: bool,
    /// Name by digest: `name@digest`.
    pub add_digest: bool,
    /// Name by digest only what the archive gives no name.
    pub skip_named_digest: bool,
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
        Self { db, unpacker, resolver, options, downloads: Arc::default() }
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

    /// Blobs being fetched.
    pub(crate) fn downloads(&self) -> &Arc<Flights<Digest>> {
        &self.downloads
    }

    /// The settings.
    pub fn options(&self) -> &TransferOptions {
        &self.options
    }

    /// Gives the image `source` the name `store.name` (and those of `store.extra_references` that
    /// are no prefixes) with `store.labels`, replacing images of those names; unpacks it first
    /// where `store.unpacks` says.
    ///
    /// # Errors
    /// NotFound for the source; InvalidArgument for a bad name or label, or when nothing asked
    /// for is served ([`TransferOptions::served`]); PermissionDenied when an
    /// image verifier refuses a name; the classes of unpacking.
    pub async fn tag(
        &self,
        ctx: &Context,
        source: &str,
        store: &StoreOptions,
        progress: &ProgressSink,
    ) -> Result<Vec<Image>> {
        let image = self.db.images().get(ctx, source).await?;
        let (ctx, own) = lease::ensure(&self.db, ctx).await?;
        let work = async {
            for name in plain_names(store, &image.target) {
                self.options.verifiers.check(&name, &image.target).await?;
            }
            let unpacks = self.options.served.of(store.unpacks.clone())?;
            self.unpack_stored(&ctx, &image.target, &unpacks, progress).await?;
            self.store_image(&ctx, store, &image.target, progress).await
        };
        own.end(work.await).await
    }

    /// Imports the images of an archive, in any compression, and unpacks them where asked. The
    /// archive as a whole is named `store.name` if that is not empty; each of its images by its
    /// annotations and the prefixes of `store.extra_references`.
    ///
    /// # Errors
    /// NotFound when nothing of the archive gets a name; else as [`crate::import()`] and
    /// unpacking.
    pub async fn import(
        &self,
        ctx: &Context,
        reader: impl AsyncRead + Send + Unpin + 'static,
        store: &StoreOptions,
        progress: &ProgressSink,
    ) -> Result<Vec<Image>> {
        progress.message("Importing");
        let (ctx, own) = lease::ensure(&self.db, ctx).await?;
        let reader = Counted::new(reader, progress.clone(), Stage::Importing, ARCHIVE);
        let images = own.end(self.import_leased(&ctx, reader, store, progress).await).await?;
        progress.message("Completed import");
        Ok(images)
    }

    async fn import_leased(
        &self,
        ctx: &Context,
        reader: impl AsyncRead + Send + Unpin + 'static,
        store: &StoreOptions,
        progress: &ProgressSink,
    ) -> Result<Vec<Image>> {
        let unpacks = self.options.served.of(store.unpacks.clone())?;
        let options = ImportOptions {
            platforms: store.matcher(),
            compress: store.compress,
            ..ImportOptions::default()
        };
        let imported = import::import(&self.db, ctx, reader, &options).await?;
        let mut named: Vec<(String, Descriptor)> = Vec::new();
        if !store.name.is_empty() {
            named.extend(plain_names(store, &imported.index).map(|n| (n, imported.index.clone())));
        }
        for manifest in imported.manifests {
            let names = archived_names(&store.extra_references, &manifest);
            // How the archive named it is in the name now.
            let target = Descriptor { platform: None, annotations: BTreeMap::new(), ..manifest };
            named.extend(names.into_iter().map(|name| (name, target.clone())));
        }
        if named.is_empty() {
            return Err(Error::not_found("the archive: no image name found in it or asked for"));
        }
        for (name, target) in &named {
            self.options.verifiers.check(name, target).await?;
        }
        let mut unpacked: Vec<&Digest> = Vec::new();
        for (_, target) in &named {
            if !unpacked.contains(&&target.digest) {
                self.unpack_stored(ctx, target, &unpacks, progress).await?;
                unpacked.push(&target.digest);
            }
        }
        let mut images = Vec::new();
        for (name, target) in &named {
            images.push(self.save(ctx, store, name.clone(), target, progress).await?);
        }
        Ok(images)
    }

    /// Unpacks an image whose content is in the store; platforms it does not have are passed by.
    async fn unpack_stored(
        &self,
        ctx: &Context,
        target: &Descriptor,
        unpacks: &[UnpackTarget],
        progress: &ProgressSink,
    ) -> Result<()> {
        let content = self.db.content();
        for to in unpacks {
            match resolve_manifest(&content, ctx, target, &to.matcher).await {
                Ok((found, manifest)) => {
                    let (unpacker, name) = (&self.unpacker, &to.snapshotter);
                    unpacker.unpack_told(ctx, found, &manifest, name, progress).await?;
                }
                Err(e) if e.is_not_found() => {
                    tracing::debug!(image = %target.digest, platforms = %to.matcher,
                        "nothing to unpack for these platforms");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes the images `source.name` and `source.extra_references` to an archive; a prefix stands
    /// for every image whose name begins with it.
    ///
    /// # Errors
    /// NotFound for an image or its content, and when nothing has a prefix; else as
    /// [`crate::export()`].
    pub async fn export(
        &self,
        ctx: &Context,
        source: &StoreOptions,
        options: &ExportOptions,
        out: impl ArchiveOut,
        progress: &ProgressSink,
    ) -> Result<()> {
        progress.message("Exporting");
        let images = self.exported(ctx, source).await?;
        let options = ExportOptions { progress: progress.clone(), ..options.clone() };
        export::export(&self.db, ctx, &images, &options, out).await?;
        progress.message("Completed export");
        Ok(())
    }

    /// The images that `source` names, each once.
    async fn exported(&self, ctx: &Context, source: &StoreOptions) -> Result<Vec<ExportImage>> {
        let records = self.db.images();
        let mut images: Vec<Image> = Vec::new();
        if !source.name.is_empty() {
            images.push(records.get(ctx, &source.name).await?);
        }
        for reference in &source.extra_references {
            if !reference.is_prefix {
                images.push(records.get(ctx, &reference.name).await?);
                continue;
            }
            let all = records.list(ctx, &[]).await?;
            let before = images.len();
            images.extend(all.into_iter().filter(|i| i.name.starts_with(&reference.name)));
            if images.len() == before {
                let text = format!("an image whose name begins with {:?}", reference.name);
                return Err(Error::not_found(text));
            }
        }
        let mut seen = BTreeSet::new();
        images.retain(|image| seen.insert(image.name.clone()));
        let named = |i: Image| ExportImage { name: Some(i.name), target: i.target };
        Ok(images.into_iter().map(named).collect())
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
        for name in plain_names(store, &target) {
            images.push(self.save(ctx, store, name, &target, progress).await?);
        }
        Ok(images)
    }

    /// Creates or replaces one image record.
    async fn save(
        &self,
        ctx: &Context,
        store: &StoreOptions,
        name: String,
        target: &Descriptor,
        progress: &ProgressSink,
    ) -> Result<Image> {
        let image = Image { labels: store.labels.clone(), ..Image::new(&name, target.clone()) };
        let image = self.create_or_update(ctx, image).await?;
        let saved = Progress::named(Stage::Saved, name);
        progress.send(Progress { descriptor: Some(target.clone()), ..saved });
        Ok(image)
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

/// The names of `store` that stand by themselves, for the image `target`.
fn plain_names<'a>(
    store: &'a StoreOptions,
    target: &'a Descriptor,
) -> impl Iterator<Item = String> + 'a {
    let first = std::iter::once(store.name.clone()).filter(|n| !n.is_empty());
    let plain = store.extra_references.iter().filter(|r| !r.is_prefix);
    first.chain(plain.map(|r| match r.add_digest {
        true => format!("{}@{}", r.name, target.digest),
        false => r.name.clone(),
    }))
}

/// The names that an image of an archive gets by its annotations, under the prefixes given.
fn archived_names(references: &[ImageReference], target: &Descriptor) -> Vec<String> {
    let mut names = Vec::new();
    for prefix in references.iter().filter(|r| r.is_prefix) {
        let name = archived_name(prefix, target);
        let named = name.is_some();
        names.extend(name);
        if prefix.add_digest && !(named && prefix.skip_named_digest) {
            names.push(format!("{}@{}", prefix.name, target.digest));
        }
    }
    names.sort();
    names.dedup();
    names
}

/// The name that annotations give under one prefix. A full name is taken as it is or not at all.
fn archived_name(prefix: &ImageReference, target: &Descriptor) -> Option<String> {
    let annotation = |key: &str| target.annotations.get(key).filter(|v| !v.is_empty());
    if let Some(full) = annotation(NAME_ANNOTATION) {
        return under_prefix(prefix, full).filter(|name| name == full);
    }
    under_prefix(prefix, annotation(REF_ANNOTATION)?)
}

/// What a name or a bare tag becomes under a prefix.
fn under_prefix(prefix: &ImageReference, name: &str) -> Option<String> {
    if prefix.name.is_empty() {
        None
    } else if !name.contains(['/', ':', '@']) {
        Some(format!("{}:{name}", prefix.name))
    } else if prefix.allow_overwrite || is_under(name, &prefix.name) {
        Some(name.to_owned())
    } else {
        None
    }
}

/// Whether the name is the prefix, or goes on after it where a part of a name ends.
fn is_under(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix);
    rest.is_some_and(|r| r.is_empty() || r.starts_with(['/', ':', '@']))
}

#[cfg(test)]
mod tests;
