//! Where mounts lead, read off their options: most layers need no mounting.

use std::path::PathBuf;

use gantry_archive::Changes;
use gantry_mount::{Mount, Options};

/// Where a layer of mounts lives, if that is plain to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One directory.
    Dir(PathBuf),
    /// An overlay: upper directory (none when read-only), those below it newest first.
    Overlay { upper: Option<PathBuf>, lowers: Vec<PathBuf>, userxattr: bool },
    /// Only mounting will tell.
    Other,
}

/// Looks at mounts without making them.
pub(super) fn place(mounts: &[Mount]) -> Place {
    let [mount] = mounts else { return Place::Other };
    let options = Options::parse(&mount.options);
    if !mount.target.is_empty() || options.uid_map.is_some() || options.looped {
        return Place::Other;
    }
    if options.bind.is_some() || mount.kind == "bind" {
        return Place::Dir(PathBuf::from(&mount.source));
    }
    if mount.kind != "overlay" {
        return Place::Other;
    }
    let mut found = (None, Vec::new(), false);
    for option in &options.data {
        match option.split_once('=') {
            // Escapes are the kernel's to undo.
            Some(_) if option.contains('\\') => return Place::Other,
            Some(("upperdir", dir)) => found.0 = Some(PathBuf::from(dir)),
            Some(("lowerdir", dirs)) => found.1 = dirs.split(':').map(PathBuf::from).collect(),
            Some(("lowerdir+" | "datadir+", _)) => return Place::Other,
            Some(("redirect_dir" | "metacopy", "on")) => return Place::Other,
            None if option == "userxattr" => found.2 = true,
            _ => {}
        }
    }
    let (upper, lowers, userxattr) = found;
    if lowers.is_empty() || lowers.iter().any(|l| !l.is_absolute()) {
        return Place::Other;
    }
    Place::Overlay { upper, lowers, userxattr }
}

/// The upper directory of `right`, when `left` is exactly what lies below it.
pub(super) fn overlay_changes(left: &[Mount], right: &[Mount]) -> Option<Changes> {
    let Place::Overlay { upper: Some(upper), lowers, userxattr } = place(right) else {
        return None;
    };
    let below = lower_dirs(left)?;
    (below == lowers).then_some(Changes::OverlayUpper { upper, userxattr })
}

/// The directories of a read-only view, newest first, if they are plain to see.
pub(crate) fn lower_dirs(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    match place(mounts) {
        Place::Dir(dir) => Some(vec![dir]),
        Place::Overlay { upper: None, lowers, .. } => Some(lowers),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
