//! What is recorded of a layer, to tell later whether its tree is still that.

use std::time::SystemTime;

use async_trait::async_trait;
use gantry_core::Digest;
use gantry_errdefs::Result;
use gantry_mount::Mount;

/// What was unpacked into a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerOrigin {
    /// Digest of the plain tar.
    pub diff_id: Digest,
    /// Digest of the blob that holds it, in whatever compression.
    pub blob: Option<Digest>,
}

/// A committed snapshot, as its keeper knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Name of the layer below.
    pub parent: Option<String>,
    /// When it was committed.
    pub committed: SystemTime,
    /// What it holds, if the one who committed it said so.
    pub origin: Option<LayerOrigin>,
    /// How many layers are below it.
    pub depth: usize,
    /// Whether it is known to be damaged.
    pub damaged: bool,
}

/// Whether a tree is what was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Whole,
    /// It is not, and in what way.
    Damaged(String),
    /// Nothing was recorded when it was committed.
    Unknown,
}

/// A directory that no record names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// Its path.
    pub path: String,
    /// Why it may be there.
    pub reason: String,
    /// Its number, by which it is removed.
    pub(crate) id: u64,
}

/// The new tree of a layer, on its way.
#[derive(Debug)]
pub struct Remade {
    /// Where to unpack it: as the mounts of an active snapshot.
    pub mounts: Vec<Mount>,
    pub(crate) id: u64,
    pub(crate) name: String,
}

/// Looking after trees on disk: what [`crate::Snapshotter`]s offer that keep theirs themselves.
///
/// Nothing here disturbs what is in use: a layer that a container has mounted is not replaced, and
/// a directory that is being made is no stray.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// The committed snapshots, those below others first.
    ///
    /// # Errors
    /// The database's.
    async fn layers(&self) -> Result<Vec<Layer>>;

    /// One committed snapshot.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition when it is not committed; the database's.
    async fn layer(&self, name: &str) -> Result<Layer>;

    /// The mounts of a view of a committed snapshot, without a view being made: for a look at its
    /// tree. Whoever looks sees to it that the layer stays.
    ///
    /// # Errors
    /// As [`Upkeep::layer`]; Unavailable when the tree is damaged.
    async fn mounts(&self, name: &str) -> Result<Vec<Mount>>;

    /// Compares the tree of a committed snapshot with what was recorded of it: names, kinds,
    /// modes, owners, sizes, times and the names of extended attributes; contents are not read.
    /// What is found damaged can be no parent of new snapshots until it was made anew.
    ///
    /// # Errors
    /// NotFound; the I/O error when the tree could not be read to its end.
    async fn verify(&self, name: &str) -> Result<Verdict>;

    /// Makes an empty tree to unpack the layer into again. Hand it to [`Upkeep::replace`] or
    /// [`Upkeep::discard`]; a crash before leaves a stray that the next start removes.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while the layer is mounted somewhere, or below one that is
    /// damaged.
    async fn remake(&self, name: &str) -> Result<Remade>;

    /// Puts a new tree in the place of the old one, durably and at once, and records it. Snapshots
    /// on top of the layer see the new tree.
    ///
    /// # Errors
    /// NotFound when the layer was removed meanwhile; FailedPrecondition when it was mounted
    /// meanwhile; the I/O error. The new tree is gone then.
    async fn replace(&self, remade: Remade) -> Result<()>;

    /// Removes a tree that came to nothing.
    async fn discard(&self, remade: Remade);

    /// Removes a damaged layer and the layers on top of it, so that the image can be unpacked
    /// again. Returns their names.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition while an active snapshot or a view is on top of one of them.
    async fn give_up(&self, name: &str) -> Result<Vec<String>>;

    /// Directories that no record names.
    ///
    /// # Errors
    /// The I/O error, the database's.
    async fn strays(&self) -> Result<Vec<Stray>>;

    /// Removes a stray, if it still is one; false if it is not.
    ///
    /// # Errors
    /// As [`Upkeep::strays`].
    async fn remove_stray(&self, stray: &Stray) -> Result<bool>;
}
