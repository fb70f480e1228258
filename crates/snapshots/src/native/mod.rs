//! The native snapshotter: each snapshot is a full copy of its parent. It works on every
//! filesystem and shares nothing but what reflinks share, so it is the fallback.
//!
//! A snapshot's directory is the tree itself.

mod copy;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Result, ResultExt as _};
use gantry_mount::Mount;
use gantry_store::Store;

use crate::engine::{Dirs, Engine, Layout, Snapshot};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage};

/// Settings of [`Native`].
#[derive(Clone, Debug, Default)]
pub struct NativeConfig {
    /// Free space in `remove` itself instead of in `cleanup`.
    pub sync_remove: bool,
}

/// The native snapshotter. Cheap to clone.
#[derive(Clone)]
pub struct Native(Engine<Copies>);

impl Native {
    /// The name under which it is configured, and its records are kept.
    pub const NAME: &'static str = "native";

    /// Opens the snapshotter at `root` (made 0700 if missing), with its records in `store`, and
    /// mends what a crash left. Blocks.
    ///
    /// # Errors
    /// The I/O error with its path; that of the store.
    pub fn open(
        root: impl AsRef<Path>,
        config: NativeConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        Engine::open(Self::NAME, root.as_ref(), Copies, store, config.sync_remove).map(Self)
    }
}

struct Copies;

impl Layout for Copies {
    /// A layer holds its parent's files.
    const REBASES: bool = false;

    fn fill(&self, dir: &Path, parent: Option<&Path>, _labels: &Labels) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let what = || dir.display().to_string();
        match parent {
            Some(parent) => copy::tree(parent, dir).context(what),
            None => fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).context(what),
        }
    }

    fn copies(&self, has_parent: bool) -> bool {
        has_parent
    }

    fn tree(&self, dir: &Path) -> PathBuf {
        dir.to_owned()
    }

    fn mounts(&self, root: &Dirs, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let (id, access) = match (snapshot.info.kind, snapshot.parents.first()) {
            (Kind::Active, _) => (snapshot.id, "rw"),
            (_, Some(parent)) => (*parent, "ro"),
            (_, None) => (snapshot.id, "ro"),
        };
        Ok(vec![Mount::new("bind", root.at(id).display().to_string(), ["rbind", access])])
    }

    fn describe(&self, _root: &Dirs, _snapshot: &Snapshot, _info: &mut Info) {}
}

crate::engine::delegate!(Native);
