//! The blockfile snapshotter: each snapshot is a file with a filesystem of its own in it, copied
//! from its parent's, or from a scratch file for the first. What a container writes cannot take
//! more space than its file has, and no other container shares its filesystem's journal or locks.
//!
//! A snapshot's directory holds `fs.img`. Copies share blocks by reflink where the filesystem
//! below can, and keep holes everywhere.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::Mount;
use gantry_store::Store;

use crate::engine::{Dirs, Engine, Layout, Snapshot, make_private};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage, data};

/// Filesystem in the files unless configured.
const FS_TYPE_DEFAULT: &str = "ext4";

/// Name of our own copy of the scratch file below the root.
const SCRATCH: &str = "scratch";

/// Settings of [`Blockfile`].
#[derive(Clone, Debug)]
pub struct BlockfileConfig {
    /// A file with an empty filesystem, from which snapshots without parent are copied. What is in
    /// it (ext4's `lost+found`) is in every one of them.
    pub scratch_file: PathBuf,
    /// Filesystem in the file; empty is ext4.
    pub fs_type: String,
    /// Options added to every mount.
    pub mount_options: Vec<String>,
    /// Take the scratch file anew at every start, and not only when there is no copy of it yet.
    pub recreate_scratch: bool,
    /// Free space in `remove` itself instead of in `cleanup`.
    pub sync_remove: bool,
}

impl Default for BlockfileConfig {
    fn default() -> Self {
        Self {
            scratch_file: PathBuf::new(),
            fs_type: String::new(),
            mount_options: Vec::new(),
            recreate_scratch: true,
            sync_remove: false,
        }
    }
}

/// The blockfile snapshotter. Cheap to clone.
#[derive(Clone)]
pub struct Blockfile(Engine<Images>);

impl Blockfile {
    /// The name under which it is configured, and its records are kept.
    pub const NAME: &'static str = "blockfile";

    /// Opens the snapshotter at `root` (made 0700 if missing), with its records in `store`, and
    /// mends what a crash left. Blocks.
    ///
    /// # Errors
    /// FailedPrecondition without a scratch file, or one that is empty; the I/O error with its
    /// path; that of the store.
    pub fn open(
        root: impl AsRef<Path>,
        config: BlockfileConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        let root = root.as_ref();
        let scratch = root.join(SCRATCH);
        let has_copy = scratch.exists();
        if config.scratch_file.as_os_str().is_empty() && !has_copy {
            return Err(Error::failed_precondition("no scratch_file is configured"));
        }
        make_private(root)?;
        if !config.scratch_file.as_os_str().is_empty() && (config.recreate_scratch || !has_copy) {
            take_scratch(&config.scratch_file, &scratch)
                .context(|| format!("scratch file {}", config.scratch_file.display()))?;
        }
        let fs_type = if config.fs_type.is_empty() {
            FS_TYPE_DEFAULT.to_owned()
        } else {
            config.fs_type.clone()
        };
        let layout = Images { scratch, fs_type, options: config.mount_options };
        Engine::open(Self::NAME, root, layout, store, config.sync_remove).map(Self)
    }
}

/// Copies the scratch file, whole or not at all.
fn take_scratch(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    if !source.metadata()?.is_file() || source.metadata()?.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file with a filesystem"));
    }
    let new = to.with_extension("new");
    let copy = File::create(&new)?;
    data::copy(&source, &copy)?;
    copy.sync_all()?;
    gantry_sys::durable::rename(&new, to)
}

struct Images {
    scratch: PathBuf,
    fs_type: String,
    options: Vec<String>,
}

fn image(dir: &Path) -> PathBuf {
    dir.join("fs.img")
}

impl Layout for Images {
    /// A layer holds its parent's files.
    const REBASES: bool = false;

    fn fill(&self, dir: &Path, parent: Option<&Path>, _labels: &Labels) -> Result<()> {
        let source = parent.map_or_else(|| self.scratch.clone(), image);
        let what = || format!("copy {} into {}", source.display(), dir.display());
        let from = File::open(&source).context(what)?;
        let to = File::create_new(image(dir)).context(what)?;
        data::copy(&from, &to).context(what)
    }

    fn copies(&self, _has_parent: bool) -> bool {
        true
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
        let mut options = self.options.clone();
        options.extend([access.to_owned(), "loop".to_owned()]);
        Ok(vec![Mount::new(&self.fs_type, image(&root.at(id)).display().to_string(), options)])
    }

    fn describe(&self, _root: &Dirs, _snapshot: &Snapshot, _info: &mut Info) {}
}

crate::engine::delegate!(Blockfile);
