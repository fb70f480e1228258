//! `--snapshotter`, of every command that makes or looks at snapshots.

use clap::Args;

#[derive(Clone, Debug, Args)]
pub(crate) struct SnapshotterFlag {
    /// Snapshotter
    #[arg(
        id = "snapshotter",
        long = "snapshotter",
        value_name = "NAME",
        env = "CONTAINERD_SNAPSHOTTER",
        default_value = "overlayfs"
    )]
    pub(crate) name: String,
}
