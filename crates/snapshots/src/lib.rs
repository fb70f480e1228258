//! Snapshots: layered filesystem trees that containers and image layers are made of.
//!
//! [`Snapshotter`] is the interface and its documentation the specification; [`Overlayfs`],
//! [`Native`], [`Btrfs`], [`Erofs`] and [`Blockfile`] implement it over one record keeper.
//! `testsuite` (a feature) checks any implementation, wrappers and remote ones included.
//!
//! Names are opaque here: the metadata layer maps `(namespace, key)` to them.
#![forbid(unsafe_code)]

mod blockfile;
mod btrfs;
mod data;
mod engine;
mod erofs;
mod ids;
mod integrity;
mod native;
mod overlay;
mod quota;
mod snapshotter;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod volatile;

pub use blockfile::{Blockfile, BlockfileConfig};
pub use btrfs::{Btrfs, BtrfsConfig};
pub use erofs::{Erofs, ErofsConfig};
pub use integrity::{Layer, LayerOrigin, Remade, Stray, Upkeep, Verdict};
pub use native::{Native, NativeConfig};
pub use overlay::{Overlayfs, OverlayfsConfig};
pub use snapshotter::{CommitOptions, Info, Kind, Snapshotter, Usage};

/// Files in the directory of an active snapshot of the erofs snapshotter, beside its upper directory:
/// by them a differ that makes images itself, containerd's among them, and the snapshotter agree.
pub mod erofs_layer {
    /// Says that an image is taken.
    pub const WANTED: &str = ".erofslayer";
    /// The image of the layer, if there is one: it is committed instead of the upper directory.
    pub const IMAGE: &str = "layer.erofs";
}

/// Labels with meaning to a snapshotter.
pub mod label {
    /// Reference of the committed snapshot a remote snapshotter may have at hand already; when it
    /// has, Prepare answers AlreadyExists.
    pub const TARGET_REF: &str = "containerd.io/snapshot.ref";
    /// Labels with this prefix are handed from clients to the snapshotter by the metadata layer;
    /// others stay in the namespaced record.
    pub const INHERITED_PREFIX: &str = "containerd.io/snapshot/";
    /// User id mapping `container:host:length` of the container the snapshot is for.
    pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
    /// Group id mapping, as [`UID_MAPPING`].
    pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
    /// Most bytes that what is written to the snapshot may take, as a decimal number; overlayfs
    /// alone, on filesystems with project quotas. It is taken when the snapshot is prepared.
    pub const QUOTA_SIZE: &str = "containerd.io/snapshot/overlay.quota.size";
    /// `true`: nobody needs what is written to the snapshot once the machine has gone down, so
    /// nobody waits for the disk when it is unmounted either; overlayfs alone. Ours.
    pub const VOLATILE: &str = "containerd.io/snapshot/overlay.volatile";
    /// Path of the upper directory, shown by `Stat` and `Walk` when the snapshotter is configured
    /// so.
    pub const UPPER_DIR: &str = "containerd.io/snapshot/overlay.upperdir";
}
