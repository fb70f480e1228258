//! The btrfs snapshotter: each snapshot is a subvolume, and a new one the kernel's own snapshot of
//! its parent, made in no time and sharing everything with it.
//!
//! A snapshot's directory is the subvolume itself. It is mounted by its number, so nothing else of
//! the filesystem can be reached through the mount.

mod own;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::{Mount, mountinfo};
use gantry_store::Store;
use gantry_sys::btrfs;
use gantry_sys::tree::{self, Measure};

use crate::engine::{Dirs, Engine, Layout, Snapshot, make_private};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage};

/// Settings of [`Btrfs`].
#[derive(Clone, Debug, Default)]
pub struct BtrfsConfig {
    /// Free space in `remove` itself instead of in `cleanup`.
    pub sync_remove: bool,
}

/// The btrfs snapshotter. Cheap to clone.
#[derive(Clone)]
pub struct Btrfs(Engine<Subvolumes>);

impl Btrfs {
    /// The name under which it is configured, and its records are kept.
    pub const NAME: &'static str = "btrfs";

    /// Opens the snapshotter at `root` (made 0700 if missing), which must be on a btrfs, with its
    /// records in `store`, and mends what a crash left. Blocks.
    ///
    /// # Errors
    /// FailedPrecondition where `root` is on another filesystem; the I/O error with its path; that
    /// of the store.
    pub fn open(
        root: impl AsRef<Path>,
        config: BtrfsConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        let root = root.as_ref();
        let what = || root.display().to_string();
        // Nothing is made where it cannot work.
        let existing = root.ancestors().find(|path| path.exists()).unwrap_or(root);
        if !btrfs::is_on(existing).context(what)? {
            return Err(Error::failed_precondition(format!(
                "path {} is not on a btrfs, which the btrfs snapshotter needs",
                root.display()
            )));
        }
        make_private(root)?;
        let layout = Subvolumes { device: device_of(root)? };
        Engine::open(Self::NAME, root, layout, store, config.sync_remove).map(Self)
    }
}

/// What the filesystem that `path` is on was mounted from.
fn device_of(path: &Path) -> Result<String> {
    let path = fs::canonicalize(path).context(|| path.display().to_string())?;
    let deepest = |m: &&gantry_mount::MountInfo| m.mount_point.components().count();
    let mounts = mountinfo()?;
    let on = mounts.iter().filter(|m| path.starts_with(&m.mount_point)).max_by_key(deepest);
    let on = on.filter(|m| m.fs_type == "btrfs").ok_or_else(|| {
        Error::failed_precondition(format!("no mount of a btrfs is above {}", path.display()))
    })?;
    Ok(on.source.clone())
}

struct Subvolumes {
    /// The block device of the filesystem.
    device: String,
}

impl Layout for Subvolumes {
    /// A layer holds its parent's files.
    const REBASES: bool = false;

    /// The number of a subvolume is asked of the filesystem.
    fn mounts_block(&self, _: &Snapshot) -> bool {
        true
    }

    const REMOVE: fn(&Path) -> io::Result<()> = remove;

    fn make(&self, dir: &Path, parent: Option<&Path>, labels: &Labels) -> Result<()> {
        let what = || dir.display().to_string();
        match parent {
            Some(parent) => btrfs::snapshot(parent, dir).context(what),
            None => {
                btrfs::create(dir).context(what)?;
                gantry_failpoint::hit("snapshot.fill").context(what)?;
                self.fill(dir, parent, labels)
            }
        }
    }

    fn fill(&self, dir: &Path, _parent: Option<&Path>, _labels: &Labels) -> Result<()> {
        // Whatever the umask says.
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir, mode).context(|| dir.display().to_string())
    }

    fn tree(&self, dir: &Path) -> PathBuf {
        dir.to_owned()
    }

    fn own_use(&self, dir: &Path, parent: Option<&Path>, whole: Measure) -> io::Result<Measure> {
        match parent {
            Some(parent) => own::measure(dir, parent),
            None => Ok(whole),
        }
    }

    fn mounts(&self, root: &Dirs, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let (id, access) = match (snapshot.info.kind, snapshot.parents.first()) {
            (Kind::Active, _) => (snapshot.id, "rw"),
            (_, Some(parent)) => (*parent, "ro"),
            (_, None) => (snapshot.id, "ro"),
        };
        let dir = root.at(id);
        let number = btrfs::subvolume_id(&dir).context(|| dir.display().to_string())?;
        let options = [access.to_owned(), format!("subvolid={number}")];
        Ok(vec![Mount::new("btrfs", self.device.clone(), options)])
    }

    fn describe(&self, _root: &Dirs, _snapshot: &Snapshot, _info: &mut Info) {}
}

/// Removes a subvolume; one that a container has put others into, or a plain directory, name by
/// name.
fn remove(path: &Path) -> io::Result<()> {
    match btrfs::is_subvolume(path) {
        Ok(true) if btrfs::remove(path).is_ok() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => tree::remove(path),
    }
}

crate::engine::delegate!(Btrfs);
