//! The overlayfs snapshotter: each snapshot holds its own changes, the kernel stacks them.
//!
//! A snapshot's directory holds `fs`, its layer, and `work`, which overlayfs needs beside the
//! upper layer. A view of a committed snapshot needs no directory at all.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Result, ResultExt as _};
use gantry_mount::Mount;
use gantry_store::Store;

use crate::engine::{Dirs, Engine, Layout, Snapshot, has_dir, make_private};
use crate::ids::{self, IdMaps};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage, label, quota, volatile};

/// Settings of [`Overlayfs`].
#[derive(Clone, Debug, Default)]
pub struct OverlayfsConfig {
    /// Options added to every overlay mount.
    pub mount_options: Vec<String>,
    /// Tell the path of the upper directory in the label [`label::UPPER_DIR`].
    pub upperdir_label: bool,
    /// Free space in `remove` itself instead of in `cleanup`.
    pub sync_remove: bool,
    /// Let clients copy and chown a root filesystem for a user namespace where the kernel cannot
    /// id-map layers; otherwise they are told to fail.
    pub slow_chown: bool,
}

/// The overlayfs snapshotter. Cheap to clone.
#[derive(Clone)]
pub struct Overlayfs(Engine<Overlay>);

impl Overlayfs {
    /// The name under which it is configured, and its records are kept.
    pub const NAME: &'static str = "overlayfs";

    /// Opens the snapshotter at `root` (made 0700 if missing), with its records in `store`, and
    /// mends what a crash left. Blocks.
    ///
    /// # Errors
    /// The I/O error with its path; that of the store.
    pub fn open(
        root: impl AsRef<Path>,
        config: OverlayfsConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        let root = root.as_ref();
        make_private(root)?;
        let layout = Overlay::detect(root, &config);
        Engine::open(Self::NAME, root, layout, store, config.sync_remove).map(Self)
    }

    /// What clients may count on, in the words the introspection service tells them: `rebase`,
    /// and for user namespaces `remap-ids` and `only-remap-ids`.
    pub fn capabilities(&self) -> Vec<String> {
        let layout = self.0.layout();
        layout.id_maps.capabilities(layout.slow_chown)
    }
}

struct Overlay {
    options: Vec<String>,
    upperdir_label: bool,
    slow_chown: bool,
    id_maps: IdMaps,
    /// Whether the kernel can do it for single snapshots.
    takes_volatile: bool,
}

/// Options of every overlay mount: those configured, and what our layers need.
pub(crate) fn base_options(configured: &[String]) -> Vec<String> {
    let mut options = configured.to_vec();
    let names_index = options.iter().any(|o| o.starts_with("index="));
    if !names_index && Path::new("/sys/module/overlay/parameters/index").exists() {
        // An index would refuse layers that were lower in another overlay before.
        options.push("index=off".to_owned());
    }
    options
}

impl Overlay {
    fn detect(root: &Path, config: &OverlayfsConfig) -> Self {
        Self {
            options: base_options(&config.mount_options),
            upperdir_label: config.upperdir_label,
            slow_chown: config.slow_chown,
            id_maps: IdMaps::detect(root),
            takes_volatile: volatile::is_supported(),
        }
    }
}

impl Overlay {
    /// Whether a snapshot is mounted without a sync at its end: one that is an overlay, with
    /// something of its own to write to.
    fn is_volatile(&self, snapshot: &Snapshot) -> bool {
        let writable = snapshot.info.kind == Kind::Active && !snapshot.parents.is_empty();
        let labels = &snapshot.info.labels;
        writable && volatile::is_wanted(self.takes_volatile, &self.options, labels)
    }
}

impl Layout for Overlay {
    const REBASES: bool = true;

    fn seal(&self, dir: &Path) -> Result<()> {
        volatile::check(dir, &self.tree(dir), &dir.join("work"))
    }

    fn settle(&self, dir: &Path, _: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
        volatile::forget(dir)
    }

    fn fill(&self, dir: &Path, parent: Option<&Path>, labels: &Labels) -> Result<()> {
        let what = || dir.display().to_string();
        let mut root = ids::Root::default();
        if let Some(parent) = parent {
            let meta = fs::metadata(self.tree(parent)).context(what)?;
            root = ids::Root { mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()) };
        }
        let (upper, work) = (self.tree(dir), dir.join("work"));
        fs::create_dir(&work).context(what)?;
        ids::make_root(&upper, root, labels)?;
        // Both, because overlayfs moves what it copies from one to the other.
        quota::limit(dir, &[&work, &upper], labels)
    }

    fn tree(&self, dir: &Path) -> PathBuf {
        dir.join("fs")
    }

    fn mounts_block(&self, snapshot: &Snapshot) -> bool {
        self.is_volatile(snapshot)
    }

    fn mounts(&self, root: &Dirs, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let upper = |id| self.tree(&root.at(id)).display().to_string();
        let id_options = self.id_maps.options(&snapshot.info.labels);
        let bind = |source, access: &str| {
            let options = [access.to_owned(), "rbind".to_owned()].into_iter();
            Ok(vec![Mount::new("bind", source, options.chain(id_options.clone()))])
        };
        let active = snapshot.info.kind == Kind::Active;
        match (active, &snapshot.parents[..]) {
            (true, []) => return bind(upper(snapshot.id), "rw"),
            (false, []) => return bind(upper(snapshot.id), "ro"),
            (false, [only]) => return bind(upper(*only), "ro"),
            _ => {}
        }
        let mut options = self.options.clone();
        if self.is_volatile(snapshot) {
            let dir = root.at(snapshot.id);
            volatile::ready(&mut options, &dir, &self.tree(&dir), &dir.join("work"))?;
        }
        options.extend(id_options);
        if active {
            options.push(format!("workdir={}", root.at(snapshot.id).join("work").display()));
            options.push(format!("upperdir={}", upper(snapshot.id)));
        }
        let lower: Vec<String> = snapshot.parents.iter().map(|id| upper(*id)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        Ok(vec![Mount::new("overlay", "overlay", options)])
    }

    fn release(&self, dir: &Path) -> Result<()> {
        if let Err(err) = quota::lift(dir, &self.tree(dir)) {
            tracing::warn!(%err, "a limit is left, for a directory that goes");
        }
        Ok(())
    }

    fn describe(&self, root: &Dirs, snapshot: &Snapshot, info: &mut Info) {
        if self.upperdir_label && has_dir(info.kind, info.parent.is_some()) {
            let upper = self.tree(&root.at(snapshot.id)).display().to_string();
            info.labels.insert(label::UPPER_DIR.to_owned(), upper);
        }
    }
}

crate::engine::delegate!(Overlayfs);
