//! Layers for user namespaces: who owns the root directory, and which options map ids.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::path::Path;

use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::userns::{self, IdRange};

use crate::label;

/// What the kernel can do for user namespaces where the layers are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdMaps {
    /// Whether layers can be id-mapped.
    pub(crate) possible: bool,
}

impl IdMaps {
    /// Asks the kernel, for layers below `root`.
    pub(crate) fn detect(root: &Path) -> Self {
        let possible = can_remap(root);
        if !possible {
            tracing::info!(root = %root.display(), "layers cannot be id-mapped here");
        }
        Self { possible }
    }

    /// What clients may count on, in the words the introspection service tells them: `rebase`,
    /// and for user namespaces `remap-ids` and, unless they may copy and chown, `only-remap-ids`.
    pub(crate) fn capabilities(self, slow_chown: bool) -> Vec<String> {
        let mut all = Vec::new();
        if self.possible {
            all.push("remap-ids".to_owned());
        }
        if !slow_chown {
            all.push("only-remap-ids".to_owned());
        }
        all.push("rebase".to_owned());
        all
    }

    /// Options that map ids, for a snapshot that asks for it.
    pub(crate) fn options(self, labels: &Labels) -> Vec<String> {
        if !self.possible {
            return Vec::new();
        }
        [("uidmap", label::UID_MAPPING), ("gidmap", label::GID_MAPPING)]
            .into_iter()
            .filter_map(|(option, label)| Some(format!("{option}={}", labels.get(label)?)))
            .collect()
    }
}

/// Mode and owner of a root directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
}

impl Default for Root {
    fn default() -> Self {
        Self { mode: 0o755, owner: (0, 0) }
    }
}

/// Makes the root directory of an upper layer. It has owner and mode of the one below, because it
/// covers that; for a mapped snapshot the owner is the mapped root.
pub(crate) fn make_root(upper: &Path, root: Root, labels: &Labels) -> Result<()> {
    let what = || upper.display().to_string();
    let mapped = |label| labels.get(label).map(|text| mapped_root(label, text)).transpose();
    let uid = mapped(label::UID_MAPPING)?.unwrap_or(root.owner.0);
    let gid = mapped(label::GID_MAPPING)?.unwrap_or(root.owner.1);
    fs::create_dir(upper).context(what)?;
    if (uid, gid) != (0, 0) {
        lchown(upper, Some(uid), Some(gid)).context(what)?;
    }
    // After the owner, which may clear bits; and whatever the umask says.
    fs::set_permissions(upper, fs::Permissions::from_mode(root.mode)).context(what)
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
    let range = IdRange { inside: 0, outside: 0, length: 1 };
    gantry_sys::machine::kernel_version() >= OVERLAY_IDMAP_SINCE
        && userns::create(&[range], &[range])
            .and_then(|ns| gantry_sys::mountattr::idmapped_tree(root, ns.as_fd(), false))
            .is_ok()
}
