//! The plugin sections this daemon understands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{GoDuration, MESSAGE_LEN_MAX};

/// The sections below `[plugins]`; sections of plugins that are not built stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plugins {
    /// The gRPC listener.
    #[serde(rename = "io.containerd.server.v1.grpc")]
    pub grpc: Listen,
    /// The ttrpc listener for shims.
    #[serde(rename = "io.containerd.server.v1.ttrpc")]
    pub ttrpc: Listen,
    /// The debug listener.
    #[serde(rename = "io.containerd.server.v1.debug")]
    pub debug: Listen,
    /// The metrics listener.
    #[serde(rename = "io.containerd.server.v1.metrics")]
    pub metrics: MetricsListen,
    /// The metadata store.
    #[serde(rename = "io.containerd.metadata.v1.bolt")]
    pub metadata: Metadata,
    /// Garbage collection.
    #[serde(rename = "io.containerd.gc.v1.scheduler")]
    pub gc: Gc,
    /// The overlayfs snapshotter.
    #[serde(rename = "io.containerd.snapshotter.v1.overlayfs")]
    pub overlayfs: Overlayfs,
    /// The native (copying) snapshotter.
    #[serde(rename = "io.containerd.snapshotter.v1.native")]
    pub native: RootPath,
    /// The erofs snapshotter.
    #[serde(rename = "io.containerd.snapshotter.v1.erofs")]
    pub erofs: Erofs,
    /// The blockfile snapshotter.
    #[serde(rename = "io.containerd.snapshotter.v1.blockfile")]
    pub blockfile: Blockfile,
    /// The btrfs snapshotter.
    #[serde(rename = "io.containerd.snapshotter.v1.btrfs")]
    pub btrfs: RootPath,
    /// The diff service.
    #[serde(rename = "io.containerd.service.v1.diff-service")]
    pub diff: Diff,
    /// The task runtime.
    #[serde(rename = "io.containerd.runtime.v2.task")]
    pub task: RuntimeTask,
    /// The shim manager.
    #[serde(rename = "io.containerd.shim.v1.manager")]
    pub shim: ShimManager,
    /// The restart monitor.
    #[serde(rename = "io.containerd.monitor.container.v1.restart")]
    pub restart: Restart,
    /// The transfer service.
    #[serde(rename = "io.containerd.transfer.v1.local")]
    pub transfer: Transfer,
    /// The programs that verify images.
    #[serde(rename = "io.containerd.image-verifier.v1.bindir")]
    pub verifier: ImageVerifier,
    /// Sections of plugins that are not built, untouched.
    #[serde(flatten)]
    pub other: BTreeMap<String, toml::Value>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listen {
    /// Socket path; empty means not served, or derived (ttrpc).
    pub address: String,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Largest message taken, in bytes (gRPC only); never above the built-in bound.
    pub max_recv_message_size: usize,
    /// Largest message sent, in bytes (gRPC only).
    pub max_send_message_size: usize,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: String::new(),
            uid: 0,
            gid: 0,
            max_recv_message_size: MESSAGE_LEN_MAX,
            max_send_message_size: MESSAGE_LEN_MAX,
        }
    }
}

/// The metrics listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsListen {
    /// `host:port`; empty means not served.
    pub address: String,
    /// Whether to keep latency histograms per RPC.
    pub grpc_histogram: bool,
}

/// Whether content of one namespace may be used by another that knows its digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentSharing {
    /// Knowing the digest is enough.
    #[default]
    Shared,
    /// The bytes must be sent again, unless a namespace is labelled shareable.
    Isolated,
}

/// Metadata options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Content sharing between namespaces.
    pub content_sharing_policy: ContentSharing,
    /// Acknowledge changes before they are on disk: a power cut takes the last of them. For
    /// throw-away machines only.
    pub no_sync: bool,
}

/// Garbage collection options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gc {
    /// Largest share of time a collection may hold others up, 0 to 0.5.
    pub pause_threshold: f64,
    /// Deletions that trigger a collection at once; 0 means never by count.
    pub deletion_threshold: u64,
    /// Mutations after which the next deletion triggers a collection.
    pub mutation_threshold: u64,
    /// Wait between the trigger and the collection.
    pub schedule_delay: GoDuration,
    /// Wait between start-up and the first collection.
    pub startup_delay: GoDuration,
}

impl Default for Gc {
    fn default() -> Self {
        let parse = |s: &str| s.parse().expect("the default durations are well formed");
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: parse("0s"),
            startup_delay: parse("100ms"),
        }
    }
}

/// Overlayfs options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overlayfs {
    /// Directory of the snapshots; empty means below `root`.
    pub root_path: String,
    /// Record the upper directory as a label of each snapshot.
    pub upperdir_label: bool,
    /// Remove directories within the Remove call instead of in the background.
    pub sync_remove: bool,
    /// Allow remapping ids by chown when the kernel cannot idmap.
    pub slow_chown: bool,
    /// Further overlay mount options.
    pub mount_options: Vec<String>,
}

/// Options of the erofs snapshotter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Erofs {
    /// Directory of the snapshots; empty means below `root`.
    pub root_path: PathBuf,
    /// Further overlay mount options.
    pub ovl_mount_options: Vec<String>,
    /// Have the kernel check layers as they are read, by fs-verity.
    pub enable_fsverity: bool,
    /// Make the images of layers immutable.
    pub set_immutable: bool,
    /// What a container may write, such as `10G`: each gets a filesystem of that size.
    pub default_size: String,
    /// Protect layers by dm-verity: `off` alone is built, the snapshotter is not loaded with another.
    pub dmverity_mode: String,
}

/// Options of the blockfile snapshotter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blockfile {
    /// Directory of the snapshots; empty means below `root`.
    pub root_path: PathBuf,
    /// A file with an empty filesystem; without one the snapshotter is not loaded.
    pub scratch_file: String,
    /// Filesystem in the file; empty means ext4.
    pub fs_type: String,
    /// Options of every mount.
    pub mount_options: Vec<String>,
    /// Copy the scratch file anew at every start.
    pub recreate_scratch: bool,
}

impl Default for Blockfile {
    fn default() -> Self {
        Self {
            root_path: PathBuf::new(),
            scratch_file: String::new(),
            fs_type: String::new(),
            mount_options: Vec::new(),
            recreate_scratch: true,
        }
    }
}

/// A plugin whose only option is where it keeps its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootPath {
    /// Directory; empty means below `root`.
    pub root_path: PathBuf,
}

/// Diff service options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Diff {
    /// Differs in the order they are tried.
    pub default: Vec<String>,
    /// Sync the file system after each applied layer.
    pub sync_fs: bool,
}

impl Default for Diff {
    fn default() -> Self {
        Self { default: vec!["walking".to_owned()], sync_fs: false }
    }
}

/// Task runtime options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeTask {
    /// Platforms served; empty means the host's.
    pub platforms: Vec<String>,
}

/// Shim manager options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShimManager {
    /// Environment added for every shim, `KEY=VALUE`.
    pub env: Vec<String>,
    /// Directory of the shims' sockets; empty means the default.
    pub socket_dir: String,
    /// Have running shims execute their program anew when the daemon starts, where it was replaced.
    pub upgrade_on_start: bool,
}

/// Options of the restart monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    /// How long a client is given to start what it has just created, or to end what is to be
    /// stopped. Exits are acted on at once, whatever this is.
    pub interval: GoDuration,
}

impl Default for Restart {
    fn default() -> Self {
        Self { interval: "10s".parse().expect("the default durations are well formed") }
    }
}

/// Transfer options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transfer {
    /// Layers fetched at once per pull.
    pub max_concurrent_downloads: usize,
    /// Layers pushed at once per push.
    pub max_concurrent_uploaded_layers: usize,
    /// Layers unpacked at once per pull.
    pub max_concurrent_unpacks: usize,
    /// Layers fetched at once by all pulls together; 0 is no bound. Ours alone.
    pub max_concurrent_downloads_total: usize,
    /// Bytes a second that all pulls together fetch; 0 is no bound. Ours alone.
    pub max_download_rate: u64,
    /// Bytes that pulls leave free on the disk of the root directory; 0 is no bound. Ours alone.
    pub min_free_space: u64,
    /// Bytes of one layer fetched in parallel ranges; 0 means whole layers.
    pub concurrent_layer_fetch_buffer: u64,
    /// Unpack to the snapshotters of `unpack_config` alone, each the images of its platform.
    pub check_platform_supported: bool,
    /// Directory of `hosts.toml` files.
    pub config_path: String,
    /// What pulled images are unpacked into.
    pub unpack_config: Vec<TransferUnpack>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            max_concurrent_downloads: 3,
            max_concurrent_uploaded_layers: 3,
            max_concurrent_unpacks: 1,
            max_concurrent_downloads_total: 0,
            max_download_rate: 0,
            min_free_space: 0,
            concurrent_layer_fetch_buffer: 0,
            check_platform_supported: false,
            config_path: String::new(),
            unpack_config: Vec::new(),
        }
    }
}

/// One target of unpacking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferUnpack {
    /// Platform, such as `linux/amd64`.
    pub platform: String,
    /// Snapshotter.
    pub snapshotter: String,
    /// Differ.
    pub differ: String,
}

/// Which programs verify images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageVerifier {
    /// Where they are; a directory that is not there holds none.
    pub bin_dir: String,
    /// How many are asked, in the order of their names; below 0 all.
    pub max_verifiers: i64,
    /// How long each may take.
    pub per_verifier_timeout: GoDuration,
}

impl Default for ImageVerifier {
    fn default() -> Self {
        Self {
            bin_dir: "/opt/containerd/image-verifier/bin".to_owned(),
            max_verifiers: 10,
            per_verifier_timeout: "10s".parse().expect("the default durations are well formed"),
        }
    }
}
