//! What an overlay mount is made of, so that layers can be read and written without mounting it.

use std::path::PathBuf;

use gantry_mount::Mount;

/// The directories of a writable overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    /// Where changes go.
    pub(super) upper: PathBuf,
    /// What lies below, topmost first.
    pub(super) lowers: Vec<PathBuf>,
    /// Whiteouts are marked by user xattrs.
    pub(super) userxattr: bool,
}

impl Overlay {
    /// Reads the options of `mounts`; None unless they are one writable overlay in the plain form
    /// that our snapshotters give. Anything unusual is left to the kernel.
    pub(super) fn of(mounts: &[Mount]) -> Option<Self> {
        let [mount] = mounts else { return None };
        if mount.kind != "overlay" || !mount.target.is_empty() {
            return None;
        }
        let option =
            |name: &str| mount.options.iter().find_map(|o| o.strip_prefix(name)?.strip_prefix('='));
        let upper = option("upperdir")?;
        let lowers = option("lowerdir")?;
        // Escaped names and data-only layers have a grammar of their own.
        if lowers.contains('\\') || lowers.contains("::") || upper.contains('\\') {
            return None;
        }
        let remapped = mount.options.iter().any(|o| {
            ["uidmap=", "gidmap=", "redirect_dir=on", "metacopy=on"]
                .iter()
                .any(|odd| o.starts_with(odd))
        });
        if remapped {
            return None;
        }
        Some(Self {
            upper: upper.into(),
            lowers: lowers.split(':').map(PathBuf::from).collect(),
            userxattr: mount.options.iter().any(|o| o == "userxattr"),
        })
    }
}

/// The directory behind `mounts` when they are one writable bind mount of it.
pub(super) fn bind_source(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else { return None };
    let is_bind = mount.kind == "bind" || mount.options.iter().any(|o| o == "rbind" || o == "bind");
    let remapped = mount.options.iter().any(|o| o.starts_with("uidmap=") || o.starts_with("gidmap="));
    (is_bind && !remapped && mount.target.is_empty() && mount.is_writable())
        .then(|| PathBuf::from(&mount.source))
}

/// The directories of a read-only view, topmost first: of an overlay without an upper directory,
/// or of a bind mount.
pub(super) fn view_lowers(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    let [mount] = mounts else { return None };
    if mount.kind == "overlay" {
        if mount.options.iter().any(|o| o.starts_with("upperdir=")) {
            return None;
        }
        let lowers = mount.options.iter().find_map(|o| o.strip_prefix("lowerdir="))?;
        return Some(lowers.split(':').map(PathBuf::from).collect());
    }
    (mount.kind == "bind").then(|| vec![PathBuf::from(&mount.source)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plain_overlays_only() {
        let plain = Mount::new("overlay", "overlay", ["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"]);
        let read = Overlay::of(std::slice::from_ref(&plain)).unwrap();
        assert_eq!(read.upper, PathBuf::from("/u"));
        assert_eq!(read.lowers, [PathBuf::from("/b"), PathBuf::from("/a")]);
        for odd in [
            Mount::new("overlay", "overlay", ["lowerdir=/b:/a"]),
            Mount::new("overlay", "overlay", ["upperdir=/u", "lowerdir=/a\\:b"]),
            Mount::new("overlay", "overlay", ["upperdir=/u", "lowerdir=/a::/data"]),
            Mount::new("overlay", "overlay", ["upperdir=/u", "lowerdir=/a", "metacopy=on"]),
            Mount::new("bind", "/a", ["rbind", "rw"]),
        ] {
            assert_eq!(Overlay::of(&[odd.clone()]), None, "{odd:?}");
        }
        assert_eq!(Overlay::of(&[plain.clone(), plain]), None);
    }

    #[test]
    fn binds_are_their_source_when_writable() {
        let bind = Mount::new("bind", "/a", ["rbind", "rw"]);
        assert_eq!(bind_source(&[bind]), Some("/a".into()));
        assert_eq!(bind_source(&[Mount::new("bind", "/a", ["rbind", "ro"])]), None);
        assert_eq!(bind_source(&[Mount::new("ext4", "/dev/x", ["rw"])]), None);
    }
}
