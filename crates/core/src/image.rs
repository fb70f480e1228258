//! Manifests, indexes and image configs (OCI image spec), as far as the daemon reads them.
//!
//! Unknown fields are ignored and what may be missing may be missing: digests are over bytes, so
//! these types are for reading, and nothing read is ever written back from them.

mod docker;
mod layout;
mod schema1;

use std::collections::BTreeMap;

use gantry_errdefs::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

pub use docker::ArchivedImage;
pub use layout::{blob_digest, blob_path};
pub use schema1::Schema1;

use crate::platforms::Matcher;
use crate::{Descriptor, Digest, Platform, media_types};

/// Largest manifest, index or image config that is read, in bytes. Registries take at most 4 MiB;
/// twice that leaves room and still bounds memory.
pub const MANIFEST_SIZE_MAX: u64 = 8 << 20;

/// How deep indexes may be nested in each other: real ones hold manifests, or indexes of manifests.
pub const INDEX_DEPTH_MAX: usize = 8;

/// Annotation of an entry of an archive's index with the full name of an image.
pub const NAME_ANNOTATION: &str = "io.containerd.image.name";

/// Annotation of an entry of an archive's index with the name of an image within it, often a bare
/// tag (OCI image spec, annotations.md).
pub const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// Schema 1 as registries name it when it is not signed.
const DOCKER_SCHEMA1_UNSIGNED: &str = "application/vnd.docker.distribution.manifest.v1+json";

/// An image manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Media type; empty in some OCI manifests.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Type of an artifact that is no container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Filesystem layers, lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// An image index or manifest list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Media type; empty in some OCI indexes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Manifests and further indexes.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// Annotations.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// An image config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What it runs on.
    #[serde(flatten)]
    pub platform: ConfigPlatform,
    /// How to run it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: RunConfig,
    /// Its layers as uncompressed digests.
    #[serde(default)]
    pub rootfs: RootFs,
    /// How each layer came to be.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// The platform as an image config carries it: every part may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPlatform {
    /// CPU architecture.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Needed features of the operating system.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// CPU variant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl From<ConfigPlatform> for Platform {
    fn from(p: ConfigPlatform) -> Self {
        Self {
            architecture: p.architecture,
            os: p.os,
            os_version: p.os_version,
            os_features: p.os_features,
            variant: p.variant,
        }
    }
}

/// How a container of the image is run by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// User and group, `user[:group]` by name or number.
    #[serde(default)]
    pub user: String,
    /// Ports the program listens on.
    #[serde(default, deserialize_with = "keys_of_map")]
    pub exposed_ports: Vec<String>,
    /// Environment, `NAME=value`.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// The program.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments, or the program when there is no entrypoint.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// Directories meant for volumes.
    #[serde(default, deserialize_with = "keys_of_map")]
    pub volumes: Vec<String>,
    /// Working directory.
    #[serde(default)]
    pub working_dir: String,
    /// Labels of the image.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that stops a container.
    #[serde(default)]
    pub stop_signal: String,
    /// Whether `Entrypoint`/`Cmd` are one escaped command line (windows).
    #[serde(default)]
    pub args_escaped: bool,
}

/// The layers of an image as digests of uncompressed tars, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Diff IDs.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<Digest>,
}

/// One entry of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the entry made no layer.
    #[serde(default)]
    pub empty_layer: bool,
}

/// Either of the two documents a reference resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An index.
    Index(Index),
    /// A manifest.
    Manifest(Box<Manifest>),
}

impl Manifest {
    /// Reads a manifest; `digest` is for errors.
    ///
    /// # Errors
    /// InvalidArgument when it is no manifest.
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self> {
        let manifest: Self = parse_json("manifest", digest, bytes)?;
        check_schema("manifest", digest, manifest.schema_version)?;
        manifest.layers.iter().chain([&manifest.config]).try_for_each(|d| check_size(digest, d))?;
        Ok(manifest)
    }
}

impl Index {
    /// An OCI index with these entries.
    pub fn over(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: media_types::OCI_INDEX.to_owned(),
            manifests,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads an index; `digest` is for errors.
    ///
    /// # Errors
    /// InvalidArgument when it is no index.
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self> {
        let index: Self = parse_json("index", digest, bytes)?;
        check_schema("index", digest, index.schema_version)?;
        index.manifests.iter().try_for_each(|d| check_size(digest, d))?;
        Ok(index)
    }

    /// The images among the entries that `matcher` accepts, best first, each with its rank; the
    /// order of equals is the index's. An entry that names no platform may be for any, so it comes
    /// after those that say they match.
    pub fn ranked(&self, matcher: &Matcher) -> Vec<(usize, &Descriptor)> {
        let rank = |entry: &Descriptor| match &entry.platform {
            Some(platform) => matcher.rank(platform),
            None => Some(usize::MAX),
        };
        let documents = self.manifests.iter().filter(|entry| entry.is_document());
        let mut ranked: Vec<_> =
            documents.filter_map(|entry| Some((rank(entry)?, entry))).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked
    }

    /// The entries that are no images, such as the parts of a checkpoint: they belong to the index
    /// whatever the platform.
    pub fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|entry| !entry.is_document())
    }
}

impl ImageConfig {
    /// Reads an image config; `digest` is for errors.
    ///
    /// # Errors
    /// InvalidArgument when it is no image config.
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Self> {
        parse_json("image config", digest, bytes)
    }
}

impl Document {
    /// Reads the document that `target` describes. A document that has the fields of both kinds
    /// is refused, for two readers could take it for two different images.
    ///
    /// # Errors
    /// InvalidArgument when the bytes are not what the media type says, or the media type is
    /// neither manifest nor index; schema 1 manifests are refused by name.
    pub fn parse(target: &Descriptor, bytes: &[u8]) -> Result<Self> {
        let digest = &target.digest;
        refuse_schema1(&target.media_type, digest)?;
        let has: Shape = parse_json("manifest", digest, bytes)?;
        let bad = |why: String| Error::invalid_argument(format!("manifest {digest}: {why}"));
        let declared = has.media_type.as_deref().unwrap_or_default();
        if !declared.is_empty() && declared != target.media_type {
            refuse_schema1(declared, digest)?;
            return Err(bad(format!("it says {declared}, its descriptor {}", target.media_type)));
        }
        if has.fs_layers.is_some() {
            return Err(schema1(digest));
        }
        let manifest_like = has.config.is_some() || has.layers.is_some();
        if manifest_like && has.manifests.is_some() {
            return Err(bad("it is both a manifest and an index".to_owned()));
        }
        if media_types::is_index(&target.media_type) {
            Ok(Self::Index(Index::parse(digest, bytes)?))
        } else if media_types::is_manifest(&target.media_type) {
            Ok(Self::Manifest(Box::new(Manifest::parse(digest, bytes)?)))
        } else {
            Err(bad(format!("unsupported media type {:?}", target.media_type)))
        }
    }

    /// What the document points at, with the suffix of the GC label that keeps each child:
    /// `m.0`, `config`, `l.0`, ...
    pub fn children(&self) -> Vec<(String, &Descriptor)> {
        match self {
            Self::Index(index) => {
                let each = index.manifests.iter().enumerate();
                each.map(|(i, d)| (format!("m.{i}"), d)).collect()
            }
            Self::Manifest(manifest) => {
                let layers = manifest.layers.iter().enumerate();
                let layers = layers.map(|(i, d)| (format!("l.{i}"), d));
                std::iter::once(("config".to_owned(), &manifest.config)).chain(layers).collect()
            }
        }
    }
}

/// The chain ID of a stack of layers, lowest first: the name of the snapshot that holds them all.
/// None for no layers.
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(first.clone(), |chain, diff| chain_next(&chain, diff)))
}

/// The chain IDs of every prefix of a stack of layers, lowest first.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = chain.last().map_or_else(|| diff.clone(), |below| chain_next(below, diff));
        chain.push(next);
    }
    chain
}

fn chain_next(below: &Digest, diff: &Digest) -> Digest {
    Digest::of(format!("{below} {diff}").as_bytes())
}

/// The fields by which the kinds of document are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

fn refuse_schema1(media_type: &str, digest: &Digest) -> Result<()> {
    match media_type {
        media_types::DOCKER_SCHEMA1 | DOCKER_SCHEMA1_UNSIGNED => Err(schema1(digest)),
        _ => Ok(()),
    }
}

fn schema1(digest: &Digest) -> Error {
    Error::invalid_argument(format!(
        "manifest {digest}: schema 1 image manifests are no longer supported"
    ))
}

fn check_schema(what: &str, digest: &Digest, version: u32) -> Result<()> {
    if version == 2 {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("{what} {digest}: unsupported schema version {version}")))
}

fn check_size(parent: &Digest, child: &Descriptor) -> Result<()> {
    if child.size >= 0 {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("manifest {parent}: {} has a negative size", child.digest)))
}

fn parse_json<T: DeserializeOwned>(what: &str, digest: &Digest, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::invalid_argument(format!("{what} {digest}: not valid: {e}")).with_source(e)
    })
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn keys_of_map<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<String>, D::Error> {
    let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(d)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests;
