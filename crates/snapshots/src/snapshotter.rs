//! The interface of a snapshotter.

use std::time::SystemTime;

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::Result;
use gantry_mount::Mount;

use crate::{LayerOrigin, Upkeep};

/// What a snapshot is for; it never changes except by commit, which turns an active snapshot into
/// a committed one under another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A read-only look at a committed snapshot, with a life of its own.
    View,
    /// A writable layer over its parent, not yet a parent itself.
    Active,
    /// Immutable; the only kind that can be a parent.
    Committed,
}

impl Kind {
    /// The lower-case word that filters compare and people read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// What it is for.
    pub kind: Kind,
    /// Its key (active, view) or name (committed). One space of names for all kinds.
    pub name: String,
    /// Name of the committed snapshot it is based on.
    pub parent: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// When it was prepared; for a committed snapshot, when it was committed.
    pub created: SystemTime,
    /// When its record last changed.
    pub updated: SystemTime,
}

/// Disk use of one snapshot, its parents not included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of inodes.
    pub inodes: u64,
    /// Bytes of disk blocks, not of apparent size.
    pub size: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.inodes = self.inodes.saturating_add(other.inodes);
        self.size = self.size.saturating_add(other.size);
    }
}

/// How to commit.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Labels of the committed snapshot; those of the active one are dropped.
    pub labels: Labels,
    /// Puts the layer on this parent (rebase). Allowed only when the active snapshot was prepared
    /// without one, or with this same one.
    pub parent: Option<String>,
    /// What was unpacked, to be recorded with it.
    pub origin: Option<LayerOrigin>,
}

/// A manager of layered filesystem trees.
///
/// # Terms
/// A *snapshot* is the state of a filesystem tree. It is stored as the difference to its *parent*;
/// a snapshot without a parent starts empty. A snapshot is *active* while it can be written, a
/// *view* when it is a read-only look, and *committed* when it is finished and can be a parent.
/// Active snapshots and views are found by *key*, committed ones by *name*; both live in one
/// space, so a key cannot equal a name.
///
/// # Life
/// ```text
///   prepare(key, parent) ──▶ active ──commit(name, key)──▶ committed ──▶ parent of others
///                              │                              │
///   view(key, parent) ──▶ view │                              │
///                           │  │                              │
///                           └──┴───────── remove ─────────────┘  (only without children)
/// ```
/// `prepare` and `view` return the mounts that make the tree visible; the snapshotter itself
/// mounts nothing. The mounts of one active snapshot must be made at one place at a time. They may
/// be asked for again with `mounts` as long as the snapshot is active or a view, and stay the same
/// until then, also across restarts of the daemon.
///
/// # Use: unpacking a layer
/// 1. `prepare("extract-<random> <chain id>", parent chain id)` gives mounts.
/// 2. Mount, extract the layer into it, unmount.
/// 3. `commit(chain id, key)`. AlreadyExists means someone else was faster: `remove(key)` and go on.
///
/// # Use: running a container
/// 1. `prepare(container id, chain id of the image)`, mounts become the root filesystem.
/// 2. When the container is deleted: `remove(container id)`.
///
/// # Promises
/// * Durable: a snapshot that `commit` returned success for is complete after a power cut, bytes
///   included. What `prepare` returned success for exists after a power cut; bytes written to it
///   are as durable as the writer made them.
/// * Crash anywhere: a call that did not return leaves either everything or nothing visible, and
///   no space taken after the next start.
/// * `remove` of a committed snapshot is refused while it has children, so parents never vanish
///   under them. Space is freed by `remove` itself or at the latest by `cleanup`.
/// * Names and labels are opaque. Any text that is not empty is a valid name.
/// * Calls may come from many tasks; those on different snapshots do not wait for each other's
///   disk work.
#[async_trait]
pub trait Snapshotter: Send + Sync + 'static {
    /// What is known of the snapshot `key`.
    ///
    /// # Errors
    /// NotFound.
    async fn stat(&self, key: &str) -> Result<Info>;

    /// Changes labels of `info.name`. `fieldpaths` names what: `labels` for all of them,
    /// `labels.<key>` for one; empty is `labels`. An empty value deletes the label. Returns the
    /// new state.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for another field path.
    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info>;

    /// Disk use of the snapshot `key` without its parents. Constant time for committed snapshots;
    /// walks the tree of an active one. A view uses nothing.
    ///
    /// # Errors
    /// NotFound.
    async fn usage(&self, key: &str) -> Result<Usage>;

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition for a committed snapshot.
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>>;

    /// Makes an active snapshot over `parent` (none: empty) and returns its mounts.
    ///
    /// # Errors
    /// AlreadyExists when `key` is taken by any snapshot; NotFound when the parent is missing;
    /// InvalidArgument when the parent is not committed.
    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;

    /// Makes a view of `parent` (none: an empty tree) and returns its mounts, all read-only.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>>;

    /// Turns the active snapshot `key` into the committed snapshot `name`, durable when this
    /// returns; `key` is free afterwards. Whoever mounted it should have unmounted it: later
    /// writes are not part of the promise.
    ///
    /// # Errors
    /// NotFound; AlreadyExists when `name` is taken; FailedPrecondition when `key` is not active;
    /// for a rebase as for [`CommitOptions::parent`], FailedPrecondition, NotFound or
    /// InvalidArgument.
    async fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()>;

    /// Removes a snapshot of any kind.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition when it has children.
    async fn remove(&self, key: &str) -> Result<()>;

    /// Calls `visit` for every snapshot, as of one moment, in no order; an error of `visit` ends
    /// the walk and is returned.
    ///
    /// # Errors
    /// That of `visit`.
    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()>;

    /// Frees space of removed snapshots that is still taken.
    ///
    /// # Errors
    /// Unimplemented where there is never anything to do; the I/O error.
    async fn cleanup(&self) -> Result<()>;

    /// Looking after the trees on disk, where the snapshotter keeps them itself.
    fn upkeep(&self) -> Option<&dyn Upkeep> {
        None
    }

    /// Whether another process does the work. It may stop answering, so nobody waits for it who
    /// did not ask for something of its own.
    fn is_foreign(&self) -> bool {
        false
    }

    /// Ends the use of the snapshotter. Further calls may fail.
    ///
    /// # Errors
    /// Unknown when something could not be released.
    async fn close(&self) -> Result<()>;
}
