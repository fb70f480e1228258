//! Pull by this program.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use gantry_core::image::{Document, INDEX_DEPTH_MAX, Index};
use gantry_core::media_types::is_layer;
use gantry_core::platforms::Matcher;
use gantry_core::reference::Reference;
use gantry_core::{Descriptor, Labels};
use gantry_errdefs::{Error, Result};
use gantry_registry::Repository;

use super::{BLOBS_AT_ONCE, Steps, followed, gc_labels, matcher, with_origin};
use crate::client::Client;
use crate::content::WriterOptions;
use crate::images::ImageRecord;
use crate::transfer::{Progress, PullOptions};
use crate::unpack::UnpackOptions;

/// One pull: where from and where to.
pub(super) struct Pull {
    pub(super) client: Client,
    pub(super) repository: Repository,
    matcher: Matcher,
    all_metadata: bool,
    metadata_only: bool,
    downloads: usize,
    steps: Steps,
}

/// Pulls as `options` say.
pub(crate) async fn pull(
    client: &Client,
    options: &PullOptions,
    progress: impl FnMut(Progress),
) -> Result<()> {
    let reference = Reference::parse(&options.reference)?;
    let repository = options.registry.resolver().repository(&reference).await?;
    let guard = client.leases().guard().await?;
    let leased = guard.client().clone();
    let work = |steps| {
        let pull = Pull {
            client: leased,
            repository,
            matcher: matcher(options.all_platforms, &options.platforms),
            all_metadata: options.all_metadata,
            metadata_only: options.metadata_only,
            downloads: if options.downloads == 0 { BLOBS_AT_ONCE } else { options.downloads },
            steps,
        };
        pull.run(options)
    };
    let done = followed(work, progress).await;
    let released = guard.release().await;
    done.and(released)
}

impl Pull {
    async fn run(self, options: &PullOptions) -> Result<()> {
        self.steps.tell("resolving", &options.reference, 0, 0).await;
        let target = self.fetch(options).await?;
        let mut record = ImageRecord::new(&options.reference, target.clone());
        record.labels.clone_from(&options.labels);
        self.client.images().create_or_update(&record).await?;
        if let (Some(snapshotter), false) = (&options.unpack, self.metadata_only) {
            self.steps.tell("unpacking", &options.reference, 0, 0).await;
            let image =
                self.client.resolve_target(&options.reference, &target, &self.matcher).await?;
            let unpack = UnpackOptions::with_snapshotter(snapshotter);
            self.client.unpack(&image, &unpack).await?;
        }
        self.steps.tell("complete", &options.reference, 0, 0).await;
        Ok(())
    }

    /// Fetches the image and returns what its name is to point to.
    async fn fetch(&self, options: &PullOptions) -> Result<Descriptor> {
        if options.convert_schema1 {
            let resolved = self.repository.resolve_with_schema1().await?;
            if let (true, Some(old)) = (resolved.is_schema1(), &resolved.bytes) {
                return self.convert(old).await;
            }
        }
        let target = self.repository.resolve().await?.descriptor;
        self.fetch_tree(&target, INDEX_DEPTH_MAX, !self.metadata_only).await?;
        Ok(target)
    }

    /// Fetches a manifest or index and what it leads to, children first; layers only if asked to.
    fn fetch_tree<'a>(
        &'a self,
        target: &'a Descriptor,
        depth_left: usize,
        layers: bool,
    ) -> BoxFuture<'a, Result<()>> {
        self.fetch_level(target, depth_left, layers).boxed()
    }

    async fn fetch_level(
        &self,
        target: &Descriptor,
        depth_left: usize,
        layers: bool,
    ) -> Result<()> {
        if depth_left == 0 {
            let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", target.digest);
            return Err(Error::invalid_argument(why));
        }
        let bytes = self.repository.manifest(target).await?;
        let document = Document::parse(target, &bytes)?;
        let (mut documents, mut blobs) = (Vec::new(), Vec::new());
        match &document {
            Document::Index(index) => {
                let wanted = self.wanted(index)?;
                for child in if self.all_metadata { &index.manifests } else { &wanted } {
                    match child.is_document() {
                        true => documents.push((child.clone(), layers && wanted.contains(child))),
                        false => blobs.push(child.clone()),
                    }
                }
            }
            Document::Manifest(_) => {
                let children = document.children().into_iter().map(|(_, child)| child);
                let kept = |child: &&Descriptor| layers || !is_layer(&child.media_type);
                blobs.extend(children.filter(kept).cloned());
            }
        }
        for (child, layers) in &documents {
            self.fetch_tree(child, depth_left - 1, *layers).await?;
        }
        let fetches: Vec<_> = blobs.iter().map(|blob| self.fetch_blob(blob).boxed()).collect();
        stream::iter(fetches).buffer_unordered(self.downloads).try_collect::<()>().await?;
        let content = self.client.content();
        let labels = gc_labels(&document);
        let labels = with_origin(&content, &target.digest, labels, self.origin()).await?;
        content.write_blob(target, bytes, &labels).await
    }

    /// The entries of an index to fetch: the best of each platform asked for, and what is no
    /// image at all, such as the parts of a checkpoint.
    fn wanted(&self, index: &Index) -> Result<Vec<Descriptor>> {
        if self.matcher.is_all() || self.metadata_only {
            return Ok(index.manifests.clone());
        }
        let ranked = index.ranked(&self.matcher);
        let best = ranked.first().map(|(rank, _)| *rank);
        let images = ranked.into_iter().take_while(|(rank, _)| Some(*rank) == best);
        let images = images.map(|(_, image)| image);
        let wanted: Vec<Descriptor> = images.chain(index.parts()).cloned().collect();
        if wanted.is_empty() {
            let why = "no match for platform in manifest";
            return Err(Error::not_found(format!("{}: {why}", self.repository.reference())));
        }
        Ok(wanted)
    }

    fn origin(&self) -> &Reference {
        self.repository.reference()
    }

    pub(super) async fn fetch_blob(&self, blob: &Descriptor) -> Result<()> {
        let name = blob.digest.to_string();
        let options = WriterOptions {
            reference: format!("layer-{}", blob.digest),
            total: blob.size,
            expected: Some(blob.digest.clone()),
        };
        let content = self.client.content();
        let labels = with_origin(&content, &blob.digest, Labels::new(), self.origin()).await?;
        let mut writer = match content.writer(options).await {
            Err(e) if e.is_already_exists() => {
                content.set_labels(&blob.digest, &labels).await?;
                self.steps.tell("already exists", &name, blob.size, blob.size).await;
                return Ok(());
            }
            other => other?,
        };
        let mut offset = writer.offset();
        let mut stream = self.repository.fetch(blob, offset.unsigned_abs()).await?;
        while let Some(bytes) = stream.next().await? {
            offset += bytes.len() as i64;
            writer.write(bytes).await?;
            self.steps.tell("downloading", &name, offset, blob.size).await;
        }
        match writer.commit(&labels).await {
            Err(e) if !e.is_already_exists() => return Err(e),
            _ => {}
        }
        self.steps.tell("complete", &name, blob.size, blob.size).await;
        Ok(())
    }
}
