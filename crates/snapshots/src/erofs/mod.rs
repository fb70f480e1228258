//! The erofs snapshotter: a committed layer is one read-only image file, checked by the kernel as
//! it is read and without an inode of the host's filesystem for each of its files; overlayfs
//! stacks the images, and what is written goes to a directory as with overlayfs.
//!
//! A snapshot's directory:
//! ```text
//! fs/ work/            of an active snapshot: the overlay's upper layer
//! layer/layer.erofs    of a committed one: what was in fs, made by mkfs.erofs
//! mnt/                 where layer.erofs is mounted, once something is put on it
//! ```
//! The snapshotter mounts the images itself, because an overlay needs directories: when mounts are
//! asked for, where they are not mounted yet. They stay until the snapshot is removed or the
//! snapshotter closed; an overlay on them holds them by itself.
//!
//! The kernel mounts the file as it is where it can (Linux 6.12), else through a loop device.

mod image;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::{Mount, UnmountFlags, is_mount_point, mount, unmount_all};
use gantry_store::Store;

use crate::engine::{Dirs, Engine, Layout, Snapshot, make_private};
use crate::ids::{self, IdMaps};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage};

/// Settings of [`Erofs`].
#[derive(Clone, Debug, Default)]
pub struct ErofsConfig {
    /// Options added to every overlay mount.
    pub overlay_options: Vec<String>,
    /// Make the image of a committed layer immutable (`chattr +i`) where the filesystem can.
    pub set_immutable: bool,
    /// Free space in `remove` itself instead of in `cleanup`.
    pub sync_remove: bool,
}

/// The erofs snapshotter. Cheap to clone.
#[derive(Clone)]
pub struct Erofs(Engine<Layers>);

impl Erofs {
    /// The name under which it is configured, and its records are kept.
    pub const NAME: &'static str = "erofs";

    /// Opens the snapshotter at `root` (made 0700 if missing), with its records in `store`, and
    /// mends what a crash left. Blocks.
    ///
    /// # Errors
    /// FailedPrecondition where the kernel has no erofs or there is no `mkfs.erofs`; the I/O error
    /// with its path; that of the store.
    pub fn open(
        root: impl AsRef<Path>,
        config: ErofsConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        let root = root.as_ref();
        image::check_kernel()?;
        let maker = image::Maker::find()?;
        make_private(root)?;
        let layout = Layers {
            maker,
            options: crate::overlay::base_options(&config.overlay_options),
            set_immutable: config.set_immutable,
            id_maps: IdMaps::detect(root),
            mounting: Mutex::default(),
        };
        Engine::open(Self::NAME, root, layout, store, config.sync_remove).map(Self)
    }

    /// What clients may count on, in the words the introspection service tells them.
    pub fn capabilities(&self) -> Vec<String> {
        self.0.layout().id_maps.capabilities(false)
    }
}

struct Layers {
    maker: image::Maker,
    options: Vec<String>,
    set_immutable: bool,
    id_maps: IdMaps,
    /// Held while a layer is mounted, so that it is mounted once.
    mounting: Mutex<()>,
}

fn upper(dir: &Path) -> PathBuf {
    dir.join("fs")
}

fn mount_point(dir: &Path) -> PathBuf {
    dir.join("mnt")
}

fn layer(dir: &Path) -> PathBuf {
    dir.join("layer")
}

fn image(dir: &Path) -> PathBuf {
    layer(dir).join("layer.erofs")
}

impl Layers {
    /// Where the image of the committed snapshot in `dir` is mounted.
    fn mounted(&self, dir: &Path) -> Result<PathBuf> {
        let place = mount_point(dir);
        let what = || place.display().to_string();
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&place).context(what)?;
        if !is_mount_point(&place)? {
            let source = image(dir).display().to_string();
            mount(&Mount::new("erofs", source, ["ro", "loop"]), &place)?;
        }
        Ok(place)
    }
}

impl Layout for Layers {
    const REBASES: bool = true;

    /// Layers are mounted where they are not yet.
    fn mounts_block(&self, _: &Snapshot) -> bool {
        true
    }

    fn fill(&self, dir: &Path, parent: Option<&Path>, labels: &Labels) -> Result<()> {
        let root = match parent {
            Some(parent) => {
                let place = self.mounted(parent)?;
                let meta = fs::metadata(&place).context(|| place.display().to_string())?;
                ids::Root { mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()) }
            }
            None => ids::Root::default(),
        };
        fs::create_dir(dir.join("work")).context(|| dir.display().to_string())?;
        ids::make_root(&upper(dir), root, labels)
    }

    fn tree(&self, dir: &Path) -> PathBuf {
        upper(dir)
    }

    fn kept(&self, dir: &Path) -> PathBuf {
        layer(dir)
    }

    fn seal(&self, dir: &Path) -> Result<()> {
        let (layer, image) = (layer(dir), image(dir));
        match fs::create_dir(&layer) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.context(|| layer.display().to_string())?,
        }
        let new = dir.join("layer.new");
        self.maker.make(&upper(dir), &new)?;
        fs::rename(&new, &image).context(|| image.display().to_string())
    }

    fn settle(&self, dir: &Path, drop: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
        if self.set_immutable {
            image::set_immutable(&image(dir), true);
        }
        for done in [upper(dir), dir.join("work")] {
            if done.symlink_metadata().is_ok() {
                drop(&done)?;
            }
        }
        Ok(())
    }

    fn mounts(&self, root: &Dirs, snapshot: &Snapshot) -> Result<Vec<Mount>> {
        let id_options = self.id_maps.options(&snapshot.info.labels);
        let bind = |source: &Path, access: &str| {
            let options = [access.to_owned(), "rbind".to_owned()].into_iter();
            let source = source.display().to_string();
            Ok(vec![Mount::new("bind", source, options.chain(id_options.clone()))])
        };
        let active = snapshot.info.kind == Kind::Active;
        let own = root.at(snapshot.id);
        let below = snapshot.parents.iter().map(|id| self.mounted(&root.at(*id)));
        let below = below.collect::<Result<Vec<_>>>()?;
        match (active, &below[..]) {
            (true, []) => return bind(&upper(&own), "rw"),
            (false, []) => return bind(&upper(&own), "ro"),
            (false, [only]) => return bind(only, "ro"),
            _ => {}
        }
        let mut options = self.options.clone();
        options.extend(id_options.iter().cloned());
        if active {
            options.push(format!("workdir={}", own.join("work").display()));
            options.push(format!("upperdir={}", upper(&own).display()));
        }
        let lower: Vec<String> = below.iter().map(|p| p.display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        Ok(vec![Mount::new("overlay", "overlay", options)])
    }

    fn describe(&self, _root: &Dirs, _snapshot: &Snapshot, _info: &mut Info) {}

    fn release(&self, dir: &Path) -> Result<()> {
        let place = mount_point(dir);
        if place.symlink_metadata().is_ok() {
            unmount_all(&place, UnmountFlags::DETACH)?;
        }
        if self.set_immutable {
            image::set_immutable(&image(dir), false);
        }
        Ok(())
    }

    fn close(&self, root: &Dirs) -> Result<()> {
        let mut first_error = Ok(());
        for dir in root.all()? {
            let place = mount_point(&dir);
            if place.symlink_metadata().is_ok() {
                let gone = unmount_all(&place, UnmountFlags::DETACH);
                first_error = first_error.and(gone);
            }
        }
        first_error.map_err(|e: Error| e.context("unmount a layer"))
    }
}

crate::engine::delegate!(Erofs);
