//! The overlayfs snapshotter: each snapshot holds its own changes, the kernel stacks them.
//!
//! A snapshot's directory holds `fs`, its layer, and `work`, which overlayfs needs beside the
//! upper layer. A view of a committed snapshot needs no directory at all.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::Mount;
use gantry_store::Store;
use gantry_sys::userns::{self, IdRange};

use crate::engine::{Dirs, Engine, Layout, Snapshot, make_private};
use crate::{CommitOptions, Info, Kind, Snapshotter, Usage, label};

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
        let mut all = Vec::new();
        if layout.remap_ids {
            all.push("remap-ids".to_owned());
        }
        if !layout.slow_chown {
            all.push("only-remap-ids".to_owned());
        }
        all.push("rebase".to_owned());
        all
    }
}

struct Overlay {
    options: Vec<String>,
    upperdir_label: bool,
    slow_chown: bool,
    /// Whether layers can be id-mapped.
    remap_ids: bool,
}

impl Overlay {
    fn detect(root: &Path, config: &OverlayfsConfig) -> Self {
        let mut options = config.mount_options.clone();
        let names_index = options.iter().any(|o| o.starts_with("index="));
        if !names_index && Path::new("/sys/module/overlay/parameters/index").exists() {
            // An index would refuse layers that were lower in another overlay before.
            options.push("index=off".to_owned());
        }
        let remap_ids = can_remap(root);
        if !remap_ids {
            tracing::info!(root = %root.display(), "overlayfs: layers cannot be id-mapped here");
        }
        Self {
            options,
            upperdir_label: config.upperdir_label,
            slow_chown: config.slow_chown,
            remap_ids,
        }
    }

    /// Options that map ids, for a snapshot that asks for it.
    fn id_options(&self, labels: &Labels) -> Vec<String> {
        if !self.remap_ids {
            return Vec::new();
        }
        [("uidmap", label::UID_MAPPING), ("gidmap", label::GID_MAPPING)]
            .into_iter()
            .filter_map(|(option, label)| Some(format!("{option}={}", labels.get(label)?)))
            .collect()
    }
}

impl Layout for Overlay {
    const REBASES: bool = true;

    fn has_dir(&self, kind: Kind, has_parent: bool) -> bool {
        kind != Kind::View || !has_parent
    }

    /// The root of the layer gets owner and mode of the parent's root, because it covers that; for
    /// a mapped snapshot the owner is the mapped root.
    fn fill(&self, dir: &Path, parent: Option<&Path>, labels: &Labels) -> Result<()> {
        let what = || dir.display().to_string();
        let mut mode = 0o755;
        let mut owner = (0, 0);
        if let Some(parent) = parent {
            let meta = fs::metadata(self.tree(parent)).context(what)?;
            mode = meta.mode() & 0o7777;
            owner = (meta.uid(), meta.gid());
        }
        let mapped = |label| labels.get(label).map(|text| mapped_root(label, text)).transpose();
        owner.0 = mapped(label::UID_MAPPING)?.unwrap_or(owner.0);
        owner.1 = mapped(label::GID_MAPPING)?.unwrap_or(owner.1);
        fs::create_dir(dir.join("work")).context(what)?;
        let upper = self.tree(dir);
        fs::create_dir(&upper).context(what)?;
        if owner != (0, 0) {
            lchown(&upper, Some(owner.0), Some(owner.1)).context(what)?;
        }
        // After the owner, which may clear bits; and whatever the umask says.
        fs::set_permissions(&upper, fs::Permissions::from_mode(mode)).context(what)
    }

    fn tree(&self, dir: &Path) -> PathBuf {
        dir.join("fs")
    }

    fn mounts(&self, root: &Dirs, snapshot: &Snapshot) -> Vec<Mount> {
        let upper = |id| self.tree(&root.at(id)).display().to_string();
        let id_options = self.id_options(&snapshot.info.labels);
        let bind = |source, access: &str| {
            let options = [access.to_owned(), "rbind".to_owned()].into_iter();
            vec![Mount::new("bind", source, options.chain(id_options.clone()))]
        };
        let active = snapshot.info.kind == Kind::Active;
        match (active, &snapshot.parents[..]) {
            (true, []) => return bind(upper(snapshot.id), "rw"),
            (false, []) => return bind(upper(snapshot.id), "ro"),
            (false, [only]) => return bind(upper(*only), "ro"),
            _ => {}
        }
        let mut options = self.options.clone();
        options.extend(id_options);
        if active {
            options.push(format!("workdir={}", root.at(snapshot.id).join("work").display()));
            options.push(format!("upperdir={}", upper(snapshot.id)));
        }
        let lower: Vec<String> = snapshot.parents.iter().map(|id| upper(*id)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        vec![Mount::new("overlay", "overlay", options)]
    }

    fn describe(&self, root: &Dirs, snapshot: &Snapshot, info: &mut Info) {
        if self.upperdir_label && self.has_dir(info.kind, info.parent.is_some()) {
            let upper = self.tree(&root.at(snapshot.id)).display().to_string();
            info.labels.insert(label::UPPER_DIR.to_owned(), upper);
        }
    }
}

/// Who root of a mapped container is on the host.
fn mapped_root(label: &str, text: &str) -> Result<u32> {
    let ranges = userns::parse_ranges(text).context(|| format!("label {label}"))?;
    ranges.iter().find(|r| r.inside == 0).map(|r| r.outside).ok_or_else(|| {
        Error::invalid_argument(format!("label {label}: {text:?} does not map the root user"))
    })
}

/// Whether the kernel id-maps mounts of the filesystem at `root` and lets overlayfs stack them.
fn can_remap(root: &Path) -> bool {
    use std::os::fd::AsFd as _;
    /// Linux 5.19: overlayfs over id-mapped layers.
    const OVERLAY_IDMAP_SINCE: (u32, u32) = (5, 19);
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let range = IdRange { inside: 0, outside: 0, length: 1 };
    version >= OVERLAY_IDMAP_SINCE
        && userns::create(&[range], &[range])
            .and_then(|ns| gantry_sys::mountattr::idmapped_tree(root, ns.as_fd(), false))
            .is_ok()
}

crate::engine::delegate!(Overlayfs);
