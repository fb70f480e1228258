//! `snapshots`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use gantry_client::{DiffOptions, Mount, SnapshotRecord, Snapshots, UnpackOptions, rootfs};
use gantry_core::platforms::Matcher;
use gantry_core::{Digest, Labels, timestamp};
use gantry_errdefs::{Error, Result};
use serde_json::json;

use crate::labels;
use crate::output::{self, Cell, Table};
use crate::session::Session;
use crate::snapshotter_flag::SnapshotterFlag;

#[derive(Debug, Args)]
pub(crate) struct Group {
    #[command(flatten)]
    snapshotter: SnapshotterFlag,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Commit an active snapshot
    Commit {
        /// Name of the committed snapshot
        name: String,
        /// Key of the active one
        key: String,
    },
    /// Write the difference between two snapshots as a layer
    Diff {
        /// Media type of the layer
        #[arg(long, default_value = "application/vnd.oci.image.layer.v1.tar+gzip")]
        media_type: String,
        /// Name of the write in the content store
        #[arg(long = "ref", default_value = "")]
        reference: String,
        /// Keep the layer in the content store, print its digest
        #[arg(long)]
        keep: bool,
        /// Labels of the layer, key=value
        #[arg(long = "label", value_name = "LABEL")]
        labels: Vec<String>,
        /// Lower snapshot; with one alone, its parent is the lower
        key: String,
        /// Upper snapshot
        upper: Option<String>,
    },
    /// Show a snapshot
    Info {
        /// Key
        key: String,
    },
    /// List snapshots
    #[command(visible_alias = "ls")]
    List {
        /// Filters
        filters: Vec<String>,
    },
    /// Print how to mount a snapshot
    #[command(visible_aliases = ["m", "mount"])]
    Mounts {
        /// Directory
        target: PathBuf,
        /// Key
        key: String,
    },
    /// Make a writable snapshot
    Prepare {
        /// Mount it here
        #[arg(long, short, value_name = "DIR")]
        target: Option<PathBuf>,
        /// Print how to mount it
        #[arg(long)]
        mounts: bool,
        /// Key
        key: String,
        /// Committed parent
        #[arg(default_value = "")]
        parent: String,
    },
    /// Make a read-only snapshot
    View {
        /// Mount it here
        #[arg(long, short, value_name = "DIR")]
        target: Option<PathBuf>,
        /// Print how to mount it
        #[arg(long)]
        mounts: bool,
        /// Key
        key: String,
        /// Committed parent
        parent: String,
    },
    /// Remove snapshots
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Keys
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Set and clear labels
    Label {
        /// Key
        key: String,
        /// Labels, key=value; an empty value clears
        labels: Vec<String>,
    },
    /// Show snapshots as a tree
    Tree,
    /// Unpack the layers of a manifest or index
    Unpack {
        /// Digest
        digest: Digest,
    },
    /// Show disk space
    Usage {
        /// Sizes in bytes
        #[arg(short = 'b')]
        bytes: bool,
        /// Keys; all when none are given
        keys: Vec<String>,
    },
}

impl Group {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let snapshots = session.client.snapshots(&self.snapshotter.name);
        match self.command {
            Command::Commit { name, key } => {
                snapshots.commit(&name, &key, root_label()).await?;
            }
            Command::Diff { media_type, reference, keep, labels, key, upper } => {
                let labels = labels::parse(&labels);
                let options = DiffOptions { media_type, reference, labels };
                diff(session, &snapshots, options, keep, key, upper).await?;
            }
            Command::Info { key } => info(&snapshots.stat(&key).await?),
            Command::List { filters } => list(session, &snapshots, &filters).await?,
            Command::Mounts { target, key } => {
                print_mounts(&snapshots.mounts(&key).await?, &target);
            }
            Command::Prepare { target, mounts, key, parent } => {
                let made = snapshots.prepare(&key, &parent, root_label()).await?;
                use_mounts(&made, target, mounts).await?;
            }
            Command::View { target, mounts, key, parent } => {
                let made = snapshots.view(&key, &parent, root_label()).await?;
                use_mounts(&made, target, mounts).await?;
            }
            Command::Delete { keys } => {
                for key in &keys {
                    let removed = snapshots.remove(key).await;
                    removed.map_err(|e| e.context(format!("failed to remove {key:?}")))?;
                }
            }
            Command::Label { key, labels } => {
                let record = snapshots.set_labels(&key, &labels::parse(&labels)).await?;
                output::line(output::label_list(&record.labels));
            }
            Command::Tree => print_tree(&snapshots.list(&[]).await?),
            Command::Unpack { digest } => unpack(session, &self.snapshotter.name, &digest).await?,
            Command::Usage { bytes, keys } => usage(session, &snapshots, bytes, keys).await?,
        }
        Ok(0)
    }
}

/// Snapshots made by hand belong to nobody: the label keeps the collector away, as ctr does.
fn root_label() -> Labels {
    let now = timestamp::format(std::time::SystemTime::now());
    Labels::from([("containerd.io/gc.root".to_owned(), now)])
}

async fn use_mounts(mounts: &[Mount], target: Option<PathBuf>, print: bool) -> Result<()> {
    match target {
        Some(target) if print => print_mounts(mounts, &target),
        Some(target) => rootfs::mount(mounts, &target).await?,
        None if print => output::json(&mounts),
        None => {}
    }
    Ok(())
}

fn print_mounts(mounts: &[Mount], target: &std::path::Path) {
    for mount in mounts {
        let options = match mount.options.as_slice() {
            [] => String::new(),
            options => format!(" -o {}", options.join(",")),
        };
        output::line(format!(
            "mount -t {} {} {}{options}",
            mount.kind,
            mount.source,
            target.display()
        ));
    }
}

fn info(record: &SnapshotRecord) {
    output::json(&json!({
        "Kind": record.kind.to_string(),
        "Name": record.name,
        "Parent": record.parent,
        "Labels": record.labels,
        "Created": timestamp::format(record.created_at),
        "Updated": timestamp::format(record.updated_at),
    }));
}

async fn list(session: &Session, snapshots: &Snapshots, filters: &[String]) -> Result<()> {
    let mut all = snapshots.list(filters).await?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut table = Table::narrow(&["KEY", "PARENT", "KIND"]);
    for record in all {
        table.row([record.name.into(), record.parent.into(), record.kind.to_string().into()]);
    }
    table.print(session.format);
    Ok(())
}

/// Each tree with its branches below and to the right.
fn print_tree(all: &[SnapshotRecord]) {
    let mut children: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in all {
        children.entry(&record.parent).or_default().insert(&record.name);
    }
    // Deep chains are normal; the stack is ours.
    let mut waiting: Vec<(&str, usize)> =
        children.get("").into_iter().flatten().rev().map(|n| (*n, 0)).collect();
    while let Some((name, depth)) = waiting.pop() {
        let indent = match depth {
            0 => String::new(),
            depth => format!("{}\\_ ", "  ".repeat(depth)),
        };
        output::line(format!("{indent}{name}"));
        waiting.extend(children.get(name).into_iter().flatten().rev().map(|n| (*n, depth + 1)));
    }
}

async fn usage(
    session: &Session,
    snapshots: &Snapshots,
    in_bytes: bool,
    mut keys: Vec<String>,
) -> Result<()> {
    if keys.is_empty() {
        keys = snapshots.list(&[]).await?.into_iter().map(|r| r.name).collect();
        keys.sort();
    }
    let mut table = Table::narrow(&["KEY", "SIZE", "INODES"]);
    for key in keys {
        let usage = snapshots.usage(&key).await?;
        let shown = if in_bytes { usage.size.to_string() } else { output::bytes(usage.size) };
        let inodes = Cell::new(usage.inodes.to_string(), usage.inodes);
        table.row([key.into(), Cell::new(shown, usage.size), inodes]);
    }
    table.print(session.format);
    Ok(())
}

async fn unpack(session: &Session, snapshotter: &str, digest: &Digest) -> Result<()> {
    let client = &session.client;
    let size = client.content().info(digest).await?.size;
    // The media type is not stored with a blob: the document itself says it, or its shape does.
    let bytes = client.content().read(digest).await?;
    let shape: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::invalid_argument(format!("manifest {digest}: {e}")))?;
    let media_type = match shape["mediaType"].as_str() {
        Some(stated) => stated,
        None if shape.get("manifests").is_some() => gantry_core::media_types::OCI_INDEX,
        None => gantry_core::media_types::OCI_MANIFEST,
    };
    let target = gantry_core::Descriptor::new(media_type, digest.clone(), size);
    let image = client.resolve_target(digest.as_str(), &target, &Matcher::host()).await?;
    client.unpack(&image, &UnpackOptions::with_snapshotter(snapshotter)).await?;
    output::line(image.chain_id().to_string());
    Ok(())
}

async fn diff(
    session: &Session,
    snapshots: &Snapshots,
    options: DiffOptions,
    keep: bool,
    key: String,
    upper: Option<String>,
) -> Result<()> {
    let guard = session.client.leases().guard().await?;
    let client = guard.client();
    let made = async {
        let leased = client.snapshots(snapshots.snapshotter());
        let (lower, upper) = match upper {
            Some(upper) => (key, upper),
            None => (leased.stat(&key).await?.parent, key),
        };
        let mut views = Vec::new();
        let left = match lower.as_str() {
            "" => Ok(Vec::new()),
            lower => mounts_of(&leased, lower, &mut views).await,
        };
        let right = mounts_of(&leased, &upper, &mut views).await;
        let layer = match (left, right) {
            (Ok(left), Ok(right)) => client.diff().diff(&left, &right, options).await,
            (Err(e), _) | (_, Err(e)) => Err(e),
        };
        for view in views {
            leased.remove(&view).await?;
        }
        let layer = layer?;
        if keep {
            client.content().set_labels(&layer.digest, &root_label()).await?;
            output::line(layer.digest.as_str());
            return Ok(());
        }
        let sink = async |bytes: bytes::Bytes| {
            use std::io::Write;
            let written = std::io::stdout().lock().write_all(&bytes);
            written.map_err(|e| Error::io("writing to standard output", e))
        };
        client.content().read_to(&layer.digest, 0, sink).await?;
        Ok(())
    };
    let done = made.await;
    let released = guard.release().await;
    done.and(released)
}

/// The mounts of a snapshot; of a committed one, those of a view that is added to `views`.
async fn mounts_of(
    snapshots: &Snapshots,
    key: &str,
    views: &mut Vec<String>,
) -> Result<Vec<Mount>> {
    let record = snapshots.stat(key).await?;
    if record.kind != gantry_client::SnapshotKind::Committed {
        return snapshots.mounts(key).await;
    }
    let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
    let view = format!("{key}-view-{random}");
    let mounts = snapshots.view(&view, key, Labels::new()).await?;
    views.push(view);
    Ok(mounts)
}
