//! Opening the snapshotters that are built in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_core::sizes;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_snapshots::{
    Blockfile, BlockfileConfig, Btrfs, BtrfsConfig, Erofs, ErofsConfig, Native, NativeConfig,
    Overlayfs, OverlayfsConfig, Snapshotter,
};
use gantry_store::Store;
use tracing::{info, warn};

use crate::config::{self, Config};

/// Plugin type of snapshotters.
pub(crate) const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// What containerd ends the error of a plugin with that cannot work on its host; its clients show
/// such a one as skipped.
pub(crate) const SKIP: &str = "skip plugin";

/// Names of the snapshotters that are built in, in the order in which they are tried.
pub(crate) const BUILT_IN: [&str; 5] =
    [Overlayfs::NAME, Native::NAME, Erofs::NAME, Blockfile::NAME, Btrfs::NAME];

/// What one snapshotter turned out to be, for introspection.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotterReport {
    pub(crate) name: &'static str,
    pub(crate) root: PathBuf,
    pub(crate) capabilities: Vec<String>,
    pub(crate) error: Option<String>,
}

/// Capabilities and the snapshotter itself.
type Opened = Result<(Vec<String>, Arc<dyn Snapshotter>)>;

/// Opens those that the configuration does not disable and that can work here; the others are
/// reported with the reason. Blocks.
pub(crate) fn open(
    config: &Config,
    store: &Arc<dyn Store>,
) -> (BTreeMap<String, Arc<dyn Snapshotter>>, Vec<SnapshotterReport>) {
    let mut open: BTreeMap<String, Arc<dyn Snapshotter>> = BTreeMap::new();
    let mut reports = Vec::new();
    for name in BUILT_IN {
        if config.is_disabled(SNAPSHOTTER, name) {
            continue;
        }
        let root = root_of(config, name);
        let mut report = SnapshotterReport { name, root, capabilities: Vec::new(), error: None };
        match open_one(config, name, &report.root, Arc::clone(store)) {
            Ok((capabilities, snapshotter)) => {
                report.capabilities = capabilities;
                open.insert(name.to_owned(), snapshotter);
            }
            Err(e) if e.is_failed_precondition() => {
                info!(snapshotter = name, reason = %e, "skipped");
                report.error = Some(format!("{}: {SKIP}", e.text()));
            }
            Err(e) => {
                warn!(snapshotter = name, error = %e, "not available");
                report.error = Some(e.text());
            }
        }
        reports.push(report);
    }
    (open, reports)
}

fn open_one(config: &Config, name: &str, root: &Path, store: Arc<dyn Store>) -> Opened {
    let plugins = &config.plugins;
    let plain = |s: Arc<dyn Snapshotter>| (Vec::new(), s);
    match name {
        Overlayfs::NAME => {
            prepare(root)?;
            let snapshotter = Overlayfs::open(root, overlayfs(&plugins.overlayfs), store)?;
            Ok((snapshotter.capabilities(), Arc::new(snapshotter)))
        }
        Erofs::NAME => {
            let snapshotter = Erofs::open(root, erofs(&plugins.erofs)?, store)?;
            Ok((snapshotter.capabilities(), Arc::new(snapshotter)))
        }
        Native::NAME => {
            prepare(root)?;
            let snapshotter = Native::open(root, NativeConfig::default(), store)?;
            Ok(plain(Arc::new(snapshotter)))
        }
        Blockfile::NAME => {
            let snapshotter = Blockfile::open(root, blockfile(&plugins.blockfile), store)?;
            Ok(plain(Arc::new(snapshotter)))
        }
        _ => Ok(plain(Arc::new(Btrfs::open(root, BtrfsConfig::default(), store)?))),
    }
}

fn overlayfs(section: &config::Overlayfs) -> OverlayfsConfig {
    OverlayfsConfig {
        mount_options: section.mount_options.clone(),
        upperdir_label: section.upperdir_label,
        sync_remove: section.sync_remove,
        slow_chown: section.slow_chown,
    }
}

/// # Errors
/// Unimplemented for what containerd's has and ours has not: without it layers would be less
/// protected than was asked for. InvalidArgument for a size that is none.
fn erofs(section: &config::Erofs) -> Result<ErofsConfig> {
    let off = ["", "off"].contains(&section.dmverity_mode.as_str());
    if !off {
        let text = "dmverity_mode of the erofs snapshotter is not built";
        return Err(Error::unimplemented(text));
    }
    let size = &section.default_size;
    let writable_bytes = parse_size(size).ok_or_else(|| {
        Error::invalid_argument(format!("default_size of the erofs snapshotter: {size:?}"))
    })?;
    Ok(ErofsConfig {
        overlay_options: section.ovl_mount_options.clone(),
        set_immutable: section.set_immutable,
        verity: section.enable_fsverity,
        writable_bytes,
        ..ErofsConfig::default()
    })
}

/// A size, see [`sizes::parse_spaced`]; empty is 0.
fn parse_size(text: &str) -> Option<u64> {
    if text.trim().is_empty() { Some(0) } else { sizes::parse_spaced(text) }
}

fn blockfile(section: &config::Blockfile) -> BlockfileConfig {
    BlockfileConfig {
        scratch_file: PathBuf::from(&section.scratch_file),
        fs_type: section.fs_type.clone(),
        mount_options: section.mount_options.clone(),
        recreate_scratch: section.recreate_scratch,
        ..BlockfileConfig::default()
    }
}

/// Where a snapshotter keeps its files.
fn root_of(config: &Config, name: &str) -> PathBuf {
    let plugins = &config.plugins;
    let configured = match name {
        Overlayfs::NAME => Path::new(&plugins.overlayfs.root_path),
        Native::NAME => &plugins.native.root_path,
        Erofs::NAME => &plugins.erofs.root_path,
        Blockfile::NAME => &plugins.blockfile.root_path,
        _ => &plugins.btrfs.root_path,
    };
    if configured.as_os_str().is_empty() {
        config.root.join(format!("{SNAPSHOTTER}.{name}"))
    } else {
        configured.to_owned()
    }
}

fn prepare(root: &Path) -> Result<()> {
    std::fs::create_dir_all(root).context(|| root.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, size) in [
            ("", 0),
            ("0", 0),
            ("1024", 1024),
            ("64M", 64 << 20),
            ("2 GiB", 2 << 30),
            ("1kb", 1024),
        ] {
            assert_eq!(parse_size(text), Some(size), "{text:?}");
        }
        for bad in ["x", "-1", "1.5G", "1 parsec", "99999999999T"] {
            assert_eq!(parse_size(bad), None, "{bad:?}");
        }
    }
}
