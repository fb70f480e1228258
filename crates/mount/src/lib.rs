//! Mounts: types, mounting, unmounting, temporary mounts and the mount table.
//!
//! A [`Mount`] is what a snapshotter hands out and a shim or unpacker makes real: a kind, a
//! source and options, in the words of `mount(8)`. [`mount_all`] makes a stack of them at one
//! target; [`unmount`] and [`unmount_recursive`] take them away again; [`TempMount`] does both
//! around a piece of work and leaves a directory that start-up can clean ([`TempRoot::open`]).
//!
//! Everything here blocks: call it from `spawn_blocking` in async code. Nothing here logs in or
//! out of namespaces; the caller's mount namespace is the one changed.
#![forbid(unsafe_code)]

mod idmap;
mod info;
mod make;
mod options;
mod overlay;
mod temp;
mod unmount;

#[cfg(test)]
mod tests;

pub use info::{MountInfo, mountinfo, parse_mountinfo};
pub use make::{mount, mount_all};
pub use options::Options;
pub use temp::{TempMount, TempRoot};
pub use unmount::{UnmountFlags, is_mount_point, unmount, unmount_all, unmount_recursive};

/// One mount to make, as snapshotters return it and the wire carries it (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mount {
    /// The filesystem type (`type` on the wire): `overlay`, `bind`, `tmpfs`, `erofs` and so on.
    pub kind: String,
    /// Device, directory or file to mount; meaning depends on the kind.
    pub source: String,
    /// Directory below the target of [`mount_all`] to mount on; empty is the target itself.
    pub target: String,
    /// Options in the words of `mount(8)`: flags such as `ro`, and filesystem data.
    pub options: Vec<String>,
}

impl Mount {
    /// A mount of `kind` from `source` with `options`, on the target itself.
    pub fn new<O>(kind: &str, source: impl Into<String>, options: O) -> Self
    where
        O: IntoIterator,
        O::Item: Into<String>,
    {
        Self {
            kind: kind.to_owned(),
            source: source.into(),
            target: String::new(),
            options: options.into_iter().map(Into::into).collect(),
        }
    }

    /// Whether the mount can be written through: an overlay has an upper directory, anything else
    /// lacks `ro`.
    pub fn is_writable(&self) -> bool {
        match self.kind.as_str() {
            "overlay" => self.options.iter().any(|o| o.starts_with("upperdir=")),
            _ => !self.options.iter().any(|o| o == "ro"),
        }
    }

    /// The same mount for a short time beside another of the same snapshot: without `volatile`,
    /// which leaves a mark in the work directory that refuses the next mount.
    #[must_use]
    pub fn temporary(&self) -> Self {
        let mut out = self.clone();
        if out.kind == "overlay" {
            out.options.retain(|o| o != "volatile");
        }
        out
    }

    /// The same mount made read-only: an overlay loses upper and work directory (its upper becomes
    /// the topmost lower), anything else gets `ro`.
    #[must_use]
    pub fn read_only(&self) -> Self {
        let mut out = self.clone();
        if out.kind == "overlay" {
            let upper =
                out.options.iter().find_map(|o| o.strip_prefix("upperdir=").map(str::to_owned));
            out.options.retain(|o| {
                !o.starts_with("upperdir=") && !o.starts_with("workdir=") && o != "volatile"
            });
            if let Some(upper) = upper {
                for o in &mut out.options {
                    if let Some(lower) = o.strip_prefix("lowerdir=") {
                        *o = format!("lowerdir={upper}:{lower}");
                    }
                }
            }
            return out;
        }
        out.options.retain(|o| o != "rw");
        if !out.options.iter().any(|o| o == "ro") {
            out.options.push("ro".to_owned());
        }
        out
    }
}
