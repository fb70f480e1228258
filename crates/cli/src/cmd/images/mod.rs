//! `images`.

mod check;
mod convert;
pub(super) mod discard;
mod explain;
mod facts;
mod inspect;
mod list;
mod mount;
mod prune;
mod tree;

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use gantry_client::{Client, ImageRecord, rootfs};
use gantry_core::Platform;
use gantry_errdefs::Result;

use crate::cli::parse_duration;
use crate::cmd::transfer::{
    CopyFlags, ExportFlags, ImportFlags, PullFlags, PushFlags, parse_platform,
};
use crate::labels;
use crate::output::{self, Cell, Table};
use crate::session::Session;
use crate::snapshotter_flag::SnapshotterFlag;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that the content of images is there
    Check {
        /// Print complete images only, names alone
        #[arg(long, short)]
        quiet: bool,
        #[command(flatten)]
        snapshotter: SnapshotterFlag,
        /// Filters
        filters: Vec<String>,
    },
    /// Change media types, compression or platforms of an image
    Convert(convert::Flags),
    /// Copy an image from registry to registry, past the daemon's store
    Copy(Box<CopyFlags>),
    /// Show how a pull would go: hosts, credentials, answers
    Explain(explain::Flags),
    /// Write images to an archive
    Export(ExportFlags),
    /// Read images from an archive
    Import(ImportFlags),
    /// List images
    #[command(visible_alias = "ls")]
    List {
        /// Print names only
        #[arg(long, short)]
        quiet: bool,
        /// Filters
        filters: Vec<String>,
    },
    /// Show what an image is made of
    Inspect(inspect::Flags),
    /// Set and clear labels
    Label {
        /// Replace all labels
        #[arg(long, short)]
        replace_all: bool,
        /// Image
        image: String,
        /// Labels, key=value; an empty value clears
        labels: Vec<String>,
    },
    /// Mount an image
    Mount {
        #[command(flatten)]
        snapshotter: SnapshotterFlag,
        /// Mount writable
        #[arg(long)]
        rw: bool,
        /// Platform
        #[arg(long, value_name = "PLATFORM", value_parser = parse_platform)]
        platform: Option<Platform>,
        /// How long its snapshot is kept if nobody unmounts it; 0s for ever
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
        expiration: Duration,
        /// Image
        image: String,
        /// Directory
        target: PathBuf,
    },
    /// Unmount an image
    Unmount {
        #[command(flatten)]
        snapshotter: SnapshotterFlag,
        /// Remove its snapshot
        #[arg(long)]
        rm: bool,
        /// Directory
        target: PathBuf,
    },
    /// Remove images that nothing uses
    Prune(prune::Flags),
    /// Pull an image from a registry
    Pull(Box<PullFlags>),
    /// Push an image to a registry
    Push(Box<PushFlags>),
    /// Remove images
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Return after their content is collected
        #[arg(long)]
        sync: bool,
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Give an image more names
    Tag {
        /// Replace names that exist
        #[arg(long)]
        force: bool,
        /// By this program instead of the transfer service; so it always is
        #[arg(long)]
        local: bool,
        /// Image
        image: String,
        /// New names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Show the disk space of an image's snapshots
    Usage {
        #[command(flatten)]
        snapshotter: SnapshotterFlag,
        /// Image
        image: String,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let client = &session.client;
        match self {
            Self::Check { quiet, snapshotter, filters } => {
                check::run(session, quiet, &snapshotter.name, &filters).await?;
            }
            Self::Convert(flags) => flags.execute(session).await?,
            Self::Copy(flags) => return flags.execute(session).await,
            Self::Explain(flags) => flags.execute(session).await?,
            Self::Export(flags) => return flags.execute(session).await,
            Self::Import(flags) => return flags.execute(session).await,
            Self::List { quiet, filters } => list::run(session, quiet, &filters).await?,
            Self::Inspect(flags) => flags.execute(session).await?,
            Self::Label { replace_all, image, labels } => {
                let labels = labels::parse(&labels);
                let record = if replace_all {
                    let mut record = client.images().get(&image).await?;
                    record.labels = labels;
                    client.images().update(&record, &["labels".to_owned()]).await?
                } else {
                    client.images().set_labels(&image, &labels).await?
                };
                output::line(output::label_list(&record.labels));
            }
            Self::Mount { snapshotter, rw, platform, expiration, image, target } => {
                let snapshotter = snapshotter.name;
                let how = mount::How { snapshotter, rw, platform, expiration };
                mount::run(client, how, &image, &target).await?;
                output::line(target.display().to_string());
            }
            Self::Unmount { snapshotter, rm, target } => {
                rootfs::unmount(&target).await?;
                if rm {
                    let key = target.display().to_string();
                    match client.snapshots(snapshotter.name).remove(&key).await {
                        Err(e) if !e.is_not_found() => return Err(e),
                        _ => {}
                    }
                }
                output::line(target.display().to_string());
            }
            Self::Prune(flags) => flags.execute(session).await?,
            Self::Pull(flags) => return flags.pull(session).await,
            Self::Push(flags) => return flags.execute(session).await,
            Self::Delete { sync, images } => return delete(session, sync, &images).await,
            Self::Tag { force, local: _, image, names } => {
                tag(client, force, &image, &names).await?
            }
            Self::Usage { snapshotter, image } => usage(session, &snapshotter.name, &image).await?,
        }
        Ok(0)
    }
}

async fn delete(session: &Session, sync: bool, images: &[String]) -> Result<u8> {
    let mut code = 0;
    let last = images.len() - 1;
    for (n, name) in images.iter().enumerate() {
        // One collection, after the last, collects for all.
        match session.client.images().delete(name, sync && n == last).await {
            Ok(()) => output::line(name),
            // As ctr: asking for what is gone already is no failure.
            Err(e) if e.is_not_found() => {
                output::error(&session.program, &format!("{name}: image not found"));
            }
            Err(e) => {
                output::error(&session.program, &e.context(format!("image {name:?}")).text());
                code = 1;
            }
        }
    }
    Ok(code)
}

async fn tag(client: &Client, force: bool, image: &str, names: &[String]) -> Result<()> {
    let source = client.images().get(image).await?;
    for name in names {
        let record = ImageRecord { name: name.clone(), ..source.clone() };
        if force {
            match client.images().delete(name, false).await {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        client.images().create(&record).await?;
        output::line(name);
    }
    Ok(())
}

async fn usage(session: &Session, snapshotter: &str, name: &str) -> Result<()> {
    let image = session.client.resolve_image(name, None).await?;
    let snapshots = session.client.snapshots(snapshotter);
    let mut table = Table::narrow(&["KEY", "SIZE", "INODES"]);
    for chain in image.chain_ids() {
        let usage = snapshots.usage(chain.as_str()).await?;
        let inodes = Cell::new(usage.inodes.to_string(), usage.inodes);
        table.row([chain.as_str().into(), output::size_cell(usage.size), inodes]);
    }
    table.print(session.format);
    Ok(())
}
