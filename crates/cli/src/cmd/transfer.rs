//! `images pull`, `push`, `copy`, `import`, `export`, and `content fetch`.

use std::fs::File;
use std::path::PathBuf;

use clap::Args;
use gantry_client::{CopyOptions, ExportOptions, ImportOptions, PullOptions, PushOptions};
use gantry_core::{Descriptor, Digest, Platform, media_types, platforms};
use gantry_errdefs::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};

use crate::cmd::images::discard;
use crate::in_place::InPlace;
use crate::progress::Display;
use crate::registry_flags::RegistryFlags;
use crate::session::Session;
use crate::snapshotter_flag::SnapshotterFlag;
use crate::{labels, output};

/// The step of an import by which an image gets its name.
const SAVED: &str = "saved";

/// Reads of fewer bytes, such as those of headers, are served from one of this size.
const SMALL_READ_BYTES: usize = 64 << 10;

/// A platform on the command line.
pub(crate) fn parse_platform(text: &str) -> Result<Platform, String> {
    platforms::parse(text).map_err(|e| e.text())
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PullFlags {
    #[command(flatten)]
    registry: RegistryFlags,
    #[command(flatten)]
    snapshotter: SnapshotterFlag,
    /// Labels of the image, key=value
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Platforms to fetch
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = parse_platform)]
    platforms: Vec<Platform>,
    /// Fetch every platform
    #[arg(long)]
    all_platforms: bool,
    /// Fetch manifests and configs of every platform
    #[arg(long, conflicts_with = "skip_metadata")]
    all_metadata: bool,
    /// Leave out what belongs to other platforms; so it is without --all-metadata
    #[arg(long)]
    skip_metadata: bool,
    /// Have the layers on disk before they are used; so it always is on gantryd
    #[arg(long)]
    sync_fs: bool,
    /// Print the name of the image's snapshot
    #[arg(long)]
    print_chainid: bool,
    /// Fetch only, do not unpack
    #[arg(long)]
    no_unpack: bool,
    /// Pull by this program instead of the daemon
    #[arg(long)]
    local: bool,
    /// Layers fetched at the same time, by this program; 0 for its own choice
    #[arg(long, default_value_t = 0)]
    max_concurrent_downloads: usize,
    /// Full reference, such as docker.io/library/busybox:latest
    reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct PushFlags {
    #[command(flatten)]
    registry: RegistryFlags,
    /// Platforms to push
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = parse_platform)]
    platforms: Vec<Platform>,
    /// Push what this digest names instead of an image, by this program
    #[arg(long, value_name = "DIGEST", conflicts_with_all = ["platforms", "image"])]
    manifest: Option<Digest>,
    /// Media type of --manifest
    #[arg(long, value_name = "TYPE", default_value = media_types::OCI_MANIFEST)]
    manifest_type: String,
    /// Push by this program instead of the daemon
    #[arg(long)]
    local: bool,
    /// Full reference to push to
    reference: String,
    /// Local image, when it has another name
    image: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImportFlags {
    /// Name of images that the archive names by tag alone
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// Also name images by digest
    #[arg(long)]
    digests: bool,
    /// With --digests: only those that the archive gives no name
    #[arg(long)]
    skip_digest_for_named: bool,
    /// Labels of the images, key=value
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Platforms to import
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = parse_platform)]
    platforms: Vec<Platform>,
    /// Name of the archive's index
    #[arg(long, value_name = "NAME")]
    index_name: Option<String>,
    /// Import every platform
    #[arg(long)]
    all_platforms: bool,
    /// Store only, do not unpack
    #[arg(long)]
    no_unpack: bool,
    /// Compress plain layers of docker's archives
    #[arg(long)]
    compress_blobs: bool,
    /// Let layers be collected once they are unpacked
    #[arg(long, conflicts_with = "no_unpack")]
    discard_unpacked_layers: bool,
    /// Have the layers on disk before they are used; so it always is on gantryd
    #[arg(long)]
    sync_fs: bool,
    /// Import by this program instead of the daemon
    #[arg(long, conflicts_with = "compress_blobs")]
    local: bool,
    #[command(flatten)]
    snapshotter: SnapshotterFlag,
    /// Archive, or - for standard input
    archive: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CopyFlags {
    #[command(flatten)]
    registry: RegistryFlags,
    /// User and password of the registry it goes to, if they are others
    #[arg(long, value_name = "USER")]
    to_user: Option<String>,
    /// Full reference of the image
    from: String,
    /// Full reference to copy it to
    to: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExportFlags {
    /// Leave out manifest.json, by which docker loads the archive
    #[arg(long)]
    skip_manifest_json: bool,
    /// Leave out layers that may not be distributed
    #[arg(long)]
    skip_non_distributable: bool,
    /// Platforms to export
    #[arg(long = "platform", value_name = "PLATFORM", value_parser = parse_platform)]
    platforms: Vec<Platform>,
    /// Export every platform
    #[arg(long)]
    all_platforms: bool,
    /// Export by this program instead of the daemon
    #[arg(long)]
    local: bool,
    /// Archive, or - for standard output
    archive: PathBuf,
    /// Images
    #[arg(required = true)]
    images: Vec<String>,
}

impl PullFlags {
    /// Pulls and unpacks.
    pub(crate) async fn pull(mut self, session: &Session) -> Result<u8> {
        let unpack = (!self.no_unpack).then(|| std::mem::take(&mut self.snapshotter.name));
        self.run(session, unpack, false).await
    }

    /// Fetches only, with `metadata_only` no layer.
    pub(crate) async fn fetch(self, session: &Session, metadata_only: bool) -> Result<u8> {
        self.run(session, None, metadata_only).await
    }

    async fn run(
        self,
        session: &Session,
        unpack: Option<String>,
        metadata_only: bool,
    ) -> Result<u8> {
        let local = self.local || metadata_only || self.registry.needs_local();
        let options = PullOptions {
            reference: self.reference.clone(),
            registry: self.registry.options(&self.reference)?,
            labels: labels::parse_strict("label", &self.labels)?,
            platforms: self.platforms.clone(),
            all_platforms: self.all_platforms,
            all_metadata: self.all_metadata,
            metadata_only,
            unpack,
            downloads: self.max_concurrent_downloads,
            local,
            ..PullOptions::new(&self.reference)
        };
        let mut display = Display::new();
        let pulled = if local {
            Err(Error::unimplemented("asked for --local"))
        } else {
            session.client.transfer().pull(options.clone(), |step| display.step(&step)).await
        };
        match pulled {
            // A daemon without the transfer service.
            Err(e) if e.is_unimplemented() => {
                session.client.pull_local(&options, |step| display.step(&step)).await?;
            }
            other => other?,
        }
        display.finish(&format!("pulled {}", self.reference));
        if self.print_chainid {
            let platform = self.platforms.first();
            let image = session.client.resolve_image(&self.reference, platform).await?;
            output::line(format!("image chain ID: {}", image.chain_id()));
        }
        Ok(0)
    }
}

impl PushFlags {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let manifest = match self.manifest {
            None => None,
            Some(digest) => {
                let size = session.client.content().info(&digest).await?.size;
                Some(Descriptor::new(&self.manifest_type, digest, size))
            }
        };
        let by_this_program = self.local || manifest.is_some() || self.registry.needs_local();
        let options = PushOptions {
            image: self.image.unwrap_or_else(|| self.reference.clone()),
            reference: self.reference.clone(),
            registry: self.registry.options(&self.reference)?,
            platforms: self.platforms,
            manifest,
        };
        let mut display = Display::new();
        let step = |step: gantry_client::Progress| display.step(&step);
        if by_this_program {
            session.client.push_local(&options, step).await?;
        } else {
            session.client.transfer().push(options, step).await?;
        }
        display.finish(&format!("pushed {}", self.reference));
        Ok(0)
    }
}

impl CopyFlags {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let to = RegistryFlags {
            user: self.to_user.or_else(|| self.registry.user.clone()),
            ..self.registry.clone()
        };
        let options = CopyOptions {
            from: self.from.clone(),
            from_registry: self.registry.options(&self.from)?,
            to: self.to.clone(),
            to_registry: to.options(&self.to)?,
        };
        let mut display = Display::new();
        session.client.transfer().copy(options, |step| display.step(&step)).await?;
        display.finish(&format!("copied {} to {}", self.from, self.to));
        Ok(0)
    }
}

impl ImportFlags {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let options = ImportOptions {
            base_name: self.base_name,
            digests: self.digests,
            skip_named_digests: self.skip_digest_for_named,
            index_name: self.index_name,
            labels: labels::parse_strict("label", &self.labels)?,
            platforms: self.platforms,
            all_platforms: self.all_platforms,
            unpack: (!self.no_unpack).then_some(self.snapshotter.name),
            compress: self.compress_blobs,
        };
        let mut display = Display::new();
        let mut saved = Vec::new();
        let step = |step: gantry_client::Progress| {
            if step.event == SAVED {
                saved.push(step.name.clone());
            }
            display.step(&step);
        };
        let name = self.archive.display().to_string();
        let mut archive: Box<dyn AsyncRead + Send + Unpin> = if name == "-" {
            Box::new(tokio::io::stdin())
        } else {
            let file = File::open(&self.archive).map_err(|e| Error::io(&name, e))?;
            Box::new(BufReader::with_capacity(SMALL_READ_BYTES, InPlace::new(file)))
        };
        if self.local {
            let images = session.client.import_local(archive, &options).await?;
            saved.extend(images.iter().map(|image| image.name().to_owned()));
        } else {
            session.client.transfer().import(&mut archive, options, step).await?;
        }
        if self.discard_unpacked_layers {
            for image in &saved {
                discard::layers(&session.client, image).await?;
            }
        }
        display.finish(&format!("imported {name}"));
        Ok(0)
    }
}

impl ExportFlags {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let options = ExportOptions {
            platforms: self.platforms,
            all_platforms: self.all_platforms,
            skip_docker_manifest: self.skip_manifest_json,
            skip_non_distributable: self.skip_non_distributable,
        };
        let name = self.archive.display().to_string();
        if name == "-" {
            let mut out = tokio::io::stdout();
            export(session, self.local, &self.images, &options, &mut out, |_| {}).await?;
            return Ok(0);
        }
        // Under another name until it is whole.
        let partial = self.archive.with_extension("partial");
        let io = |e| Error::io(&name, e);
        let mut file = InPlace::new(File::create(&partial).map_err(io)?);
        let mut display = Display::new();
        let step = |step: gantry_client::Progress| display.step(&step);
        let exported = export(session, self.local, &self.images, &options, &mut file, step).await;
        let done = match exported {
            Ok(_) => file.sync().map_err(io),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            let _ = tokio::fs::remove_file(&partial).await;
            return Err(e);
        }
        tokio::fs::rename(&partial, &self.archive).await.map_err(io)?;
        display.finish(&format!("exported {name}"));
        Ok(0)
    }
}

/// Exports by this program or by the daemon.
async fn export(
    session: &Session,
    local: bool,
    images: &[String],
    options: &ExportOptions,
    out: &mut (impl AsyncWrite + Send + Unpin),
    step: impl FnMut(gantry_client::Progress) + Send,
) -> Result<u64> {
    if local {
        return session.client.export_local(images, options, out).await;
    }
    session.client.transfer().export(images, options, out, step).await
}
