//! Sources and destinations as clients name them.

use std::sync::Arc;

use gantry_api::Payload as _;
use gantry_api::containerd::types::transfer as wire;
use gantry_api::gantry::types::transfer::v1 as own;
use gantry_core::Context;
use gantry_core::platforms::{self, Matcher};
use gantry_core::reference::Reference;
use gantry_errdefs::{Error, Result};
use gantry_images::{ExportOptions, ImageReference, LayerSnapshot, StoreOptions, UnpackTarget};
use gantry_registry::{Hosts, HostsOptions, Resolver};
use prost_types::Any;

use super::auth::StreamCredentials;
use super::http_log;
use crate::convert;
use crate::streaming::Streams;

/// The snapshotter of an unpack request that names none.
const SNAPSHOTTER_DEFAULT: &str = "overlayfs";

/// Where an image comes from or goes to.
#[derive(Debug)]
pub(super) enum Place {
    /// A registry.
    Registry(Registry),
    /// The image store.
    Store(StoreOptions),
    /// An archive that the client sends.
    Import {
        /// Name of the stream.
        stream: String,
        /// Whether plain layers of docker's archives are compressed.
        compress: bool,
    },
    /// An archive that the client receives.
    Export {
        /// Name of the stream.
        stream: String,
        /// What the archive holds.
        options: ExportOptions,
    },
    /// A layer that the client sends.
    LayerIn {
        /// Name of the stream.
        stream: String,
        /// Its media type; empty for any.
        media_type: String,
    },
    /// A layer that the client receives.
    LayerOut {
        /// Name of the stream.
        stream: String,
        /// The media type wanted; empty for OCI with gzip.
        media_type: String,
    },
    /// A snapshot.
    Snapshot(LayerSnapshot),
}

/// An image on a registry.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) reference: Reference,
    how: wire::RegistryResolver,
}

impl Place {
    /// Reads one from its message.
    ///
    /// # Errors
    /// Unknown for a type nobody knows, InvalidArgument for bad contents.
    pub(super) fn of(any: Any) -> Result<Self> {
        if let Some(registry) = any.unpack::<wire::OciRegistry>()? {
            let reference = Reference::parse(&registry.reference)?;
            let how = registry.resolver.unwrap_or_default();
            return Ok(Self::Registry(Registry { reference, how }));
        }
        if let Some(store) = any.unpack::<wire::ImageStore>()? {
            return Ok(Self::Store(store_options(store)));
        }
        if let Some(import) = any.unpack::<wire::ImageImportStream>()? {
            return Ok(Self::Import { stream: import.stream, compress: import.force_compress });
        }
        if let Some(export) = any.unpack::<wire::ImageExportStream>()? {
            let platforms = if export.all_platforms || export.platforms.is_empty() {
                Matcher::all()
            } else {
                Matcher::ordered(
                    &export.platforms.into_iter().map(convert::platform).collect::<Vec<_>>(),
                )
            };
            let options = ExportOptions {
                platforms,
                skip_docker_manifest: export.skip_compatibility_manifest,
                skip_non_distributable: export.skip_non_distributable,
                ..ExportOptions::default()
            };
            return Ok(Self::Export { stream: export.stream, options });
        }
        if let Some(wire::ReadStream { stream, media_type }) = any.unpack()? {
            return Ok(Self::LayerIn { stream, media_type });
        }
        if let Some(wire::WriteStream { stream, media_type }) = any.unpack()? {
            return Ok(Self::LayerOut { stream, media_type });
        }
        if let Some(snapshot) = any.unpack::<own::Snapshot>()? {
            return layer_snapshot(snapshot).map(Self::Snapshot);
        }
        // Clients know this one as Unknown.
        Err(Error::unknown(format!("transfer: unknown type {:?}", any.type_url)))
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Registry(_) => "OCIRegistry",
            Self::Store(_) => "ImageStore",
            Self::Import { .. } => "ImageImportStream",
            Self::Export { .. } => "ImageExportStream",
            Self::LayerIn { .. } => "ReadStream",
            Self::LayerOut { .. } => "WriteStream",
            Self::Snapshot(_) => "Snapshot",
        }
    }
}

fn layer_snapshot(snapshot: own::Snapshot) -> Result<LayerSnapshot> {
    let filled = |text: String| Some(text).filter(|t| !t.is_empty());
    let diff_id = filled(snapshot.diff_id).map(|d| d.parse()).transpose()?;
    Ok(LayerSnapshot {
        snapshotter: filled(snapshot.snapshotter).unwrap_or_else(|| SNAPSHOTTER_DEFAULT.to_owned()),
        key: snapshot.key,
        parent: filled(snapshot.parent),
        labels: convert::labels(snapshot.labels),
        diff_id,
        source_date_epoch: snapshot.source_date_epoch,
    })
}

fn store_options(store: wire::ImageStore) -> StoreOptions {
    let reference = |r: wire::ImageReference| ImageReference {
        name: r.name,
        is_prefix: r.is_prefix,
        allow_overwrite: r.allow_overwrite,
        add_digest: r.add_digest,
        skip_named_digest: r.skip_named_digest,
    };
    let unpack = |u: wire::UnpackConfiguration| {
        let platform = u.platform.map_or_else(platforms::default, convert::platform);
        let named = !u.snapshotter.is_empty();
        let snapshotter = if named { &u.snapshotter } else { SNAPSHOTTER_DEFAULT };
        UnpackTarget::new(&platform, snapshotter)
    };
    StoreOptions {
        name: store.name,
        labels: convert::labels(store.labels),
        platforms: store.platforms.into_iter().map(convert::platform).collect(),
        all_metadata: store.all_metadata,
        manifest_limit: usize::try_from(store.manifest_limit).unwrap_or(usize::MAX),
        extra_references: store.extra_references.into_iter().map(reference).collect(),
        unpacks: store.unpacks.into_iter().map(unpack).collect(),
        compress: false,
    }
}

impl Registry {
    /// The way there: `base`, with the hosts, headers and credentials that the client asks for.
    ///
    /// # Errors
    /// NotFound for a stream of credentials or lines that is not open.
    pub(super) fn resolver(
        &self,
        base: &Resolver,
        streams: &Streams,
        ctx: &Context,
    ) -> Result<Resolver> {
        let how = &self.how;
        let mut resolver = base.clone();
        if !how.host_dir.is_empty() || !how.headers.is_empty() || !how.default_scheme.is_empty() {
            let mut options = HostsOptions {
                config_dirs: base.hosts().config_dirs().to_vec(),
                plain_http: match how.default_scheme.as_str() {
                    "http" => Some(true),
                    "https" => Some(false),
                    _ => None,
                },
                header: how.headers.clone().into_iter().collect(),
                ..HostsOptions::default()
            };
            if !how.host_dir.is_empty() {
                options.config_dirs = vec![how.host_dir.clone().into()];
            }
            resolver = resolver.with_hosts(Hosts::new(options));
        }
        if !how.auth_stream.is_empty() {
            let stream = streams.take(&ctx.namespace, &how.auth_stream)?;
            resolver = resolver.with_credentials(Arc::new(StreamCredentials::new(stream)));
        }
        if how.http_debug() != wire::HttpDebug::Disabled || !how.logs_stream.is_empty() {
            let named = Some(&how.logs_stream).filter(|name| !name.is_empty());
            let stream = named.map(|name| streams.take(&ctx.namespace, name)).transpose()?;
            let log = http_log::to(stream, how.http_debug());
            resolver = resolver.observed(Arc::new(log));
        }
        Ok(resolver)
    }
}
