//! The erofs snapshotter: a committed layer is one read-only image file, checked by the kernel as
//! it is read and without an inode of the host's filesystem for each of its files; overlayfs
//! stacks the images, and what is written goes to a directory as with overlayfs.
//!
//! A snapshot's directory:
//! ```text
//! fs/ work/            of an active snapshot: the overlay's upper layer
//! layer/layer.erofs    of a committed one: what was in fs, made by mkfs.erofs
//! mnt/                 where layer.erofs is mounted, once something is put on it
//! layer.erofs          of an active one: the image of the layer, if a differ has made it
//! rwlayer.img rw/      of an active snapshot of bounded size, instead of fs and work
//! ```
//! The snapshotter mounts the images itself, because an overlay needs directories: when mounts are
//! asked for, where they are not mounted yet. They stay until the snapshot is removed or the
//! snapshotter closed; an overlay on them holds them by itself.
//!
//! The kernel mounts the file as it is where it can (Linux 6.12), else through a loop device.

mod image;
mod writable;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::{Mount, UnmountFlags, is_mount_point, mount, unmount_all};
use gantry_store::Store;
use gantry_sys::verity;

use crate::engine::{Dirs, Engine, Layout, Snapshot, make_private};
use crate::ids::{self, IdMaps};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage, erofs_layer, label, volatile};

/// Settings of [`Erofs`].
#[derive(Clone, Debug, Default)]
pub struct ErofsConfig {
    /// Options added to every overlay mount.
    pub overlay_options: Vec<String>,
    /// Make the image of a committed layer immutable (`chattr +i`) where the filesystem can.
    pub set_immutable: bool,
    /// Have the kernel check the images of layers as they are read (fs-verity); images that it
    /// does not check are not mounted.
    pub verity: bool,
    /// What may be written to a snapshot, in bytes, by a filesystem of its own for each but those
    /// that layers are unpacked to; 0 is no bound.
    pub writable_bytes: u64,
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
    /// FailedPrecondition where the kernel has no erofs or there is no `mkfs.erofs`; Unimplemented
    /// where the filesystem has no fs-verity that is asked for; InvalidArgument for a bound that is
    /// too small; the I/O error with its path; that of the store.
    pub fn open(
        root: impl AsRef<Path>,
        config: ErofsConfig,
        store: Arc<dyn Store>,
    ) -> Result<Self> {
        let root = root.as_ref();
        image::check_kernel()?;
        let maker = image::Maker::find()?;
        make_private(root)?;
        if config.verity {
            image::check_verity(root)?;
        }
        if (1..writable::SIZE_MIN).contains(&config.writable_bytes) {
            return Err(Error::invalid_argument(format!(
                "writable layers of {} bytes: they take {} at least",
                config.writable_bytes,
                writable::SIZE_MIN
            )));
        }
        let layout = Layers {
            maker,
            options: crate::overlay::base_options(&config.overlay_options),
            set_immutable: config.set_immutable,
            verity: config.verity,
            writable_bytes: config.writable_bytes,
            takes_volatile: volatile::is_supported(),
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
    verity: bool,
    writable_bytes: u64,
    /// Whether the kernel can mount single snapshots so.
    takes_volatile: bool,
    id_maps: IdMaps,
    /// Held while a layer is mounted, so that it is mounted once.
    mounting: Mutex<()>,
}

/// Where the upper layer of the snapshot in `dir` and its work directory are.
fn writable_dir(dir: &Path) -> PathBuf {
    if writable::is_there(dir) { writable::place(dir) } else { dir.to_owned() }
}

fn upper(dir: &Path) -> PathBuf {
    writable_dir(dir).join("fs")
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
    /// Refuses an image that the kernel does not check, where it has to.
    fn check(&self, image: &Path) -> Result<()> {
        let what = || image.display().to_string();
        if self.verity && !verity::is_enabled(image).context(what)? {
            return Err(Error::failed_precondition(format!(
                "layer {}: fs-verity is not enabled on it; it was made before enable_fsverity was \
                 set, or replaced: remove its image and pull it again",
                image.display()
            )));
        }
        Ok(())
    }

    /// Has what is written to the snapshot in `dir` at hand.
    fn open_writable(&self, dir: &Path) -> Result<()> {
        if writable::is_there(dir) {
            let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
            writable::mounted(dir)?;
        }
        Ok(())
    }

    /// Where the image of the committed snapshot in `dir` is mounted.
    fn mounted(&self, dir: &Path) -> Result<PathBuf> {
        let place = mount_point(dir);
        let what = || place.display().to_string();
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&place).context(what)?;
        if !is_mount_point(&place)? {
            self.check(&image(dir))?;
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
        let fill = |place: &Path| {
            fs::create_dir(place.join("work")).context(|| place.display().to_string())?;
            ids::make_root(&place.join("fs"), root, labels)
        };
        // A layer that is unpacked takes what it takes.
        if self.writable_bytes == 0 || labels.contains_key(label::TARGET_REF) {
            let wanted = dir.join(erofs_layer::WANTED);
            fs::File::create(&wanted).context(|| wanted.display().to_string())?;
            return fill(dir);
        }
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        writable::make(dir, self.writable_bytes, fill)
    }

    fn tree(&self, dir: &Path) -> PathBuf {
        match self.open_writable(dir) {
            Ok(()) => upper(dir),
            // It is there all the same, if not to be read now: nobody may take it for unfinished.
            Err(err) => {
                tracing::error!(path = %dir.display(), %err, "a writable layer cannot be mounted");
                writable::image(dir)
            }
        }
    }

    fn kept(&self, dir: &Path) -> PathBuf {
        layer(dir)
    }

    fn seal(&self, dir: &Path) -> Result<()> {
        self.open_writable(dir)?;
        volatile::check(dir, &upper(dir), &writable_dir(dir).join("work"))?;
        let (layer, image) = (layer(dir), image(dir));
        match fs::create_dir(&layer) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.context(|| layer.display().to_string())?,
        }
        let new = dir.join("layer.new");
        let given = dir.join(erofs_layer::IMAGE);
        match given.is_file() {
            true => image::keep(&given, &new)?,
            false => self.maker.make(&upper(dir), &new)?,
        }
        if self.verity && !verity::is_enabled(&new).context(|| new.display().to_string())? {
            verity::enable(&new).context(|| format!("fs-verity of {}", new.display()))?;
        }
        fs::rename(&new, &image).context(|| image.display().to_string())
    }

    fn settle(&self, dir: &Path, drop: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
        if self.set_immutable {
            image::set_immutable(&image(dir), true);
        }
        writable::remove(dir)?;
        volatile::forget(dir)?;
        for done in [erofs_layer::WANTED, erofs_layer::IMAGE].map(|name| dir.join(name)) {
            if done.symlink_metadata().is_ok() {
                fs::remove_file(&done).context(|| done.display().to_string())?;
            }
        }
        for done in ["fs", "work"].map(|name| dir.join(name)) {
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
        self.open_writable(&own)?;
        let below = snapshot.parents.iter().map(|id| self.mounted(&root.at(*id)));
        let below = below.collect::<Result<Vec<_>>>()?;
        match (active, &below[..]) {
            (true, []) => return bind(&upper(&own), "rw"),
            (false, []) => return bind(&upper(&own), "ro"),
            (false, [only]) => return bind(only, "ro"),
            _ => {}
        }
        let mut options = self.options.clone();
        let labels = &snapshot.info.labels;
        if active && volatile::is_wanted(self.takes_volatile, &self.options, labels) {
            let work = writable_dir(&own).join("work");
            volatile::ready(&mut options, &own, &upper(&own), &work)?;
        }
        options.extend(id_options.iter().cloned());
        if active {
            options.push(format!("workdir={}", writable_dir(&own).join("work").display()));
            options.push(format!("upperdir={}", upper(&own).display()));
        }
        let lower: Vec<String> = below.iter().map(|p| p.display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        Ok(vec![Mount::new("overlay", "overlay", options)])
    }

    fn describe(&self, _root: &Dirs, _snapshot: &Snapshot, _info: &mut Info) {}

    fn release(&self, dir: &Path) -> Result<()> {
        writable::unmount(dir)?;
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
            first_error = first_error.and(writable::unmount(&dir));
        }
        first_error.map_err(|e: Error| e.context("unmount a layer"))
    }
}

crate::engine::delegate!(Erofs);
