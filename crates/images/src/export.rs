//! Exporting images as an archive: an OCI layout that docker loads as well.
//!
//! The same images give the same bytes: blobs come in the order of their digests. They are streamed
//! from the content store as the archive is read.

use std::collections::{BTreeMap, BTreeSet};

use gantry_core::image::{ArchivedImage, Document, Manifest, blob_path};
use gantry_core::platforms::{self, Matcher};
use gantry_core::{Context, Descriptor, Digest, Reference, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_layout::{ArchiveOut, ArchiveWriter, named};
use gantry_metadata::{Content, Db, Resource};

use crate::lease;
use crate::progress::{ProgressSink, Reporter, Stage};
use crate::read::{is_attestation, platform_of, read_parsed};

/// Bytes of a blob read and written at once.
const PIECE_BYTES: usize = 256 << 10;

/// Manifests and indexes one export may reach.
const DOCUMENT_COUNT_MAX: usize = 100_000;

/// An image to export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportImage {
    /// Its full name; none exports it without one.
    pub name: Option<String>,
    /// What it is.
    pub target: Descriptor,
}

/// How to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The platforms to take of an index; others are left out.
    pub platforms: Matcher,
    /// Leaves out `manifest.json`, by which docker loads the archive.
    pub skip_docker_manifest: bool,
    /// Leaves out layers that may not be distributed.
    pub skip_non_distributable: bool,
    /// Who is told how far it is.
    pub progress: ProgressSink,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            platforms: Matcher::all(),
            skip_docker_manifest: false,
            skip_non_distributable: false,
            progress: ProgressSink::default(),
        }
    }
}

/// Writes an archive of `images` to `out`.
///
/// # Errors
/// InvalidArgument for no images or bad documents; NotFound when content of the platforms asked
/// for is missing; the errors of `out`.
pub async fn export(
    db: &Db,
    ctx: &Context,
    images: &[ExportImage],
    options: &ExportOptions,
    out: impl ArchiveOut,
) -> Result<()> {
    if images.is_empty() {
        return Err(Error::invalid_argument("no images to export"));
    }
    let (ctx, own) = lease::ensure(db, ctx).await?;
    own.end(export_held(db, &ctx, images, options, out).await).await
}

async fn export_held(
    db: &Db,
    ctx: &Context,
    images: &[ExportImage],
    options: &ExportOptions,
    out: impl ArchiveOut,
) -> Result<()> {
    let content = db.content();
    let mut plan = Plan::default();
    let mut index = Vec::new();
    for image in images {
        let manifests = plan.add(&content, ctx, &image.target, options).await?;
        plan.name_for_docker(&content, ctx, image, &manifests, options).await?;
        let target = image.target.clone();
        index.push(match &image.name {
            Some(name) => named(target, name),
            None => target,
        });
    }
    hold(db, ctx, &plan).await?;
    let mut archive = ArchiveWriter::new(out).await?;
    for blob in plan.blobs.values() {
        let mut reporter = Reporter::new(&options.progress, blob, &[]);
        write_blob(&mut archive, &content, ctx, &blob.digest, &mut reporter).await?;
        reporter.stage(Stage::Complete);
    }
    let docker = plan.docker.into_iter().map(|(_, image)| image);
    let docker: Vec<ArchivedImage> = docker.filter(|_| !options.skip_docker_manifest).collect();
    archive.finish(index, &docker).await.map(drop)
}

async fn write_blob(
    archive: &mut ArchiveWriter<impl ArchiveOut>,
    content: &Content,
    ctx: &Context,
    digest: &Digest,
    reporter: &mut Reporter,
) -> Result<()> {
    let reader = content.reader(ctx, digest).await?;
    let size = reader.size();
    archive.blob(digest, size).await?;
    let mut at = 0;
    while at < size {
        let piece = reader.read_at(at, PIECE_BYTES).await?;
        if piece.is_empty() {
            return Err(Error::data_loss(format!("content {digest}: it is cut short")));
        }
        at += piece.len() as u64;
        archive.piece(piece).await?;
        reporter.bytes(Stage::Exporting, at);
    }
    Ok(())
}

/// Puts what will be read under the lease, so that an image deleted meanwhile still exports.
async fn hold(db: &Db, ctx: &Context, plan: &Plan) -> Result<()> {
    let Some(lease) = &ctx.lease else { return Ok(()) };
    let leases = db.leases();
    let held = plan.blobs.keys().map(|digest| {
        let resource = Resource { kind: "content".to_owned(), id: digest.to_string() };
        leases.add_resource(ctx, lease, resource)
    });
    // All at once: they share one commit.
    futures_util::future::try_join_all(held).await.map(drop)
}

/// What goes into an archive.
#[derive(Default)]
struct Plan {
    blobs: BTreeMap<Digest, Descriptor>,
    documents: usize,
    /// docker's images, in order, by manifest digest.
    docker: Vec<(Digest, ArchivedImage)>,
}

impl Plan {
    /// Takes in all that `target` reaches; returns the manifests.
    async fn add(
        &mut self,
        content: &Content,
        ctx: &Context,
        target: &Descriptor,
        options: &ExportOptions,
    ) -> Result<Vec<(Descriptor, Manifest)>> {
        let mut manifests = Vec::new();
        let mut todo = vec![(target.clone(), true)];
        let mut seen = BTreeSet::new();
        while let Some((target, needed)) = todo.pop() {
            if !seen.insert(target.digest.clone()) {
                continue;
            }
            self.documents += 1;
            if self.documents > DOCUMENT_COUNT_MAX {
                let text = format!("more than {DOCUMENT_COUNT_MAX} manifests to export");
                return Err(Error::invalid_argument(text));
            }
            let document = match read_parsed(content, ctx, &target).await {
                Err(err) if err.is_not_found() && !needed => continue,
                document => document.context(|| "export")?,
            };
            self.blobs.insert(target.digest.clone(), target.clone());
            match document {
                Document::Index(index) => {
                    for child in index.manifests.into_iter().rev() {
                        let wanted =
                            child.platform.as_ref().is_none_or(|p| options.platforms.matches(p));
                        // Attestations go with their image if they are there.
                        let extra = is_attestation(&child);
                        if wanted || extra {
                            todo.push((child, !extra));
                        }
                    }
                }
                Document::Manifest(manifest) => {
                    self.add_blobs(content, ctx, &manifest, options).await?;
                    manifests.push((target, *manifest));
                }
            }
        }
        if manifests.is_empty() {
            return Err(Error::not_found(format!(
                "image {}: a manifest for the platforms to export",
                target.digest
            )));
        }
        Ok(manifests)
    }

    async fn add_blobs(
        &mut self,
        content: &Content,
        ctx: &Context,
        manifest: &Manifest,
        options: &ExportOptions,
    ) -> Result<()> {
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let foreign = media_types::is_foreign(&blob.media_type);
            if foreign && options.skip_non_distributable {
                continue;
            }
            match content.info(ctx, &blob.digest).await {
                Err(err) if err.is_not_found() && foreign => continue,
                info => drop(info.context(|| "export")?),
            }
            self.blobs.insert(blob.digest.clone(), blob.clone());
        }
        Ok(())
    }

    /// Notes the image docker will load under the name: the best for this host, or the best there
    /// is.
    async fn name_for_docker(
        &mut self,
        content: &Content,
        ctx: &Context,
        image: &ExportImage,
        manifests: &[(Descriptor, Manifest)],
        options: &ExportOptions,
    ) -> Result<()> {
        let wanted = if options.platforms.is_all() {
            Matcher::only(&platforms::default())
        } else {
            options.platforms.clone()
        };
        let mut best: Option<(usize, &(Descriptor, Manifest))> = None;
        for one in manifests {
            let (target, manifest) = one;
            if is_attestation(target) || !media_types::is_config(&manifest.config.media_type) {
                continue;
            }
            let platform = platform_of(content, ctx, target, manifest).await?;
            let rank = wanted.rank(&platform).unwrap_or(usize::MAX);
            if best.is_none_or(|(r, _)| rank < r) {
                best = Some((rank, one));
            }
        }
        let Some((_, (target, manifest))) = best else { return Ok(()) };
        let at = self.docker.iter().position(|(digest, _)| *digest == target.digest);
        let at = at.unwrap_or_else(|| {
            let item = ArchivedImage {
                config: blob_path(&manifest.config.digest),
                names: Vec::new(),
                layers: manifest.layers.iter().map(|l| blob_path(&l.digest)).collect(),
            };
            self.docker.push((target.digest.clone(), item));
            self.docker.len() - 1
        });
        if let Some(tag) = image.name.as_deref().and_then(docker_tag) {
            let tags = &mut self.docker[at].1.names;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        Ok(())
    }
}

/// The name as docker shows it; `None` for one without a tag.
fn docker_tag(name: &str) -> Option<String> {
    let reference = Reference::parse(name).ok()?;
    let tag = reference.tag()?;
    let locator = reference.locator();
    let short = locator.strip_prefix("docker.io/").unwrap_or(&locator);
    let short = short.strip_prefix("library/").filter(|s| !s.contains('/')).unwrap_or(short);
    Some(format!("{short}:{tag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_shows_short_names() {
        for (name, short) in [
            ("docker.io/library/busybox:1", Some("busybox:1")),
            ("docker.io/me/app:1", Some("me/app:1")),
            ("example.com/library/app:1", Some("example.com/library/app:1")),
            ("example.com/app", None),
        ] {
            assert_eq!(docker_tag(name).as_deref(), short, "{name}");
        }
    }
}
