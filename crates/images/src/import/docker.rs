//! docker's archives: `manifest.json` with configs and layers beside it.

use std::collections::BTreeMap;

use gantry_archive::Compression;
use gantry_core::image::{ImageConfig, Index, Manifest};
use gantry_core::{Context, Descriptor, Platform, media_types, reference};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_metadata::Db;
use serde::Deserialize;

use super::members::{Archived, Stored};
use super::{parse, store_document};
use crate::content::read_document;

/// Images in one archive.
const IMAGE_COUNT_MAX: usize = 10_000;

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
struct Item {
    /// Member with the image config.
    #[serde(rename = "Config", default)]
    config: String,
    /// Names.
    #[serde(rename = "RepoTags", default)]
    repo_tags: Option<Vec<String>>,
    /// Members with the layers, lowest first.
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

/// Makes manifests for the images, stores them, and returns the bytes of an index over them.
///
/// # Errors
/// InvalidArgument for what does not fit together.
pub(super) async fn index(
    db: &Db,
    ctx: &Context,
    archived: &Archived,
    manifest: &[u8],
) -> Result<Vec<u8>> {
    let items: Vec<Item> = parse("manifest.json", manifest)?;
    if items.len() > IMAGE_COUNT_MAX {
        let text = format!("archive member manifest.json: over {IMAGE_COUNT_MAX} images");
        return Err(Error::invalid_argument(text));
    }
    let mut manifests = Vec::new();
    for item in items {
        let target = image(db, ctx, archived, &item).await?;
        let names = item.repo_tags.unwrap_or_default();
        if names.is_empty() {
            manifests.push(target.clone());
        }
        for name in names {
            let full = reference::normalize_docker(&name)
                .context(|| "archive member manifest.json, RepoTags")?;
            let mut named = target.clone();
            named.annotations.insert(super::NAME.to_owned(), full.to_string());
            let object = full.object();
            if !object.is_empty() {
                named.annotations.insert(super::REF_NAME.to_owned(), object);
            }
            manifests.push(named);
        }
    }
    let index = Index {
        schema_version: 2,
        media_type: media_types::OCI_INDEX.to_owned(),
        manifests,
        annotations: BTreeMap::new(),
    };
    encode(&index)
}

async fn image(db: &Db, ctx: &Context, archived: &Archived, item: &Item) -> Result<Descriptor> {
    let find = |what: &str, name: &str| {
        archived.blob(name).ok_or_else(|| {
            Error::invalid_argument(format!(
                "archive member manifest.json: {what} {name:?} is not in the archive"
            ))
        })
    };
    let config = find("config", &item.config)?;
    let config = described(config, media_types::DOCKER_CONFIG);
    let bytes = read_document(&db.content(), ctx, &config).await?;
    let parsed = ImageConfig::parse(&config.digest, &bytes)?;
    let diff_ids = &parsed.rootfs.diff_ids;
    let names = item.layers.as_deref().unwrap_or_default();
    if names.len() != diff_ids.len() {
        return Err(Error::invalid_argument(format!(
            "image config {}: it has {} layers, manifest.json {}",
            config.digest,
            diff_ids.len(),
            names.len()
        )));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let stored = find("layer", name)?;
        let compression = Compression::of_magic(&stored.head);
        // What a compressed layer holds is checked when it is unpacked.
        if compression == Compression::None && stored.digest != *diff_id {
            return Err(Error::invalid_argument(format!(
                "archive member {name}: its digest is {}, the image config says {diff_id}",
                stored.digest
            )));
        }
        layers.push(described(stored, layer_type(compression)));
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_types::DOCKER_MANIFEST.to_owned(),
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations: BTreeMap::new(),
    };
    let mut target =
        store_document(db, ctx, media_types::DOCKER_MANIFEST, &encode(&manifest)?).await?;
    let platform = Platform::from(parsed.platform);
    if !platform.os.is_empty() || !platform.architecture.is_empty() {
        target.platform = Some(platform);
    }
    Ok(target)
}

fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => media_types::DOCKER_LAYER,
        Compression::Gzip => media_types::DOCKER_LAYER_GZIP,
        Compression::Zstd => media_types::DOCKER_LAYER_ZSTD,
    }
}

fn described(stored: &Stored, media_type: &str) -> Descriptor {
    let size = i64::try_from(stored.size).unwrap_or(i64::MAX);
    Descriptor::new(media_type, stored.digest.clone(), size)
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal(format!("encode a manifest: {e}")))
}
