//! Mount options in the words of `mount(8)`.

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Parsed options of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Flags of the mount and its filesystem.
    pub flags: MountFlags,
    /// Set by any word that sets or clears a flag (`rw` too), so that a bind mount knows whether
    /// it has to change what it took over from its source.
    pub flags_given: bool,
    /// A bind mount of the source, whatever the kind says; `Some(true)` with all below it.
    pub bind: Option<bool>,
    /// Change an existing mount instead of making one.
    pub remount: bool,
    /// Propagation to set once mounted.
    pub propagation: Option<MountPropagationFlags>,
    /// Put a loop device over the source, which is a file.
    pub looped: bool,
    /// User id mappings (`inside:outside:length`) for an id-mapped mount.
    pub uid_map: Option<String>,
    /// Group id mappings, as `uid_map`.
    pub gid_map: Option<String>,
    /// What is left for the filesystem, in order.
    pub data: Vec<String>,
}

impl Options {
    /// Parses `words`. Words not known here are the filesystem's.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Self {
        let mut out = Self {
            flags: MountFlags::empty(),
            flags_given: false,
            bind: None,
            remount: false,
            propagation: None,
            looped: false,
            uid_map: None,
            gid_map: None,
            data: Vec::new(),
        };
        for word in words {
            out.take(word.as_ref());
        }
        out
    }

    fn take(&mut self, word: &str) {
        if let Some((flag, set)) = flag(word) {
            self.flags_given = true;
            self.flags.set(flag, set);
        } else if let Some(propagation) = propagation(word) {
            self.propagation = Some(propagation);
        } else if let Some(map) = word.strip_prefix("uidmap=") {
            self.uid_map = Some(map.to_owned());
        } else if let Some(map) = word.strip_prefix("gidmap=") {
            self.gid_map = Some(map.to_owned());
        } else {
            match word {
                "" | "defaults" => {}
                "bind" => self.bind = self.bind.or(Some(false)),
                "rbind" => self.bind = Some(true),
                "remount" => self.remount = true,
                "loop" => self.looped = true,
                other => self.data.push(other.to_owned()),
            }
        }
    }

    /// The filesystem's options, comma separated.
    pub fn data_string(&self) -> String {
        self.data.join(",")
    }

    /// The flags as `MOUNT_ATTR_*` bits (linux/mount.h): those to set and those to clear.
    pub(crate) fn attributes(&self) -> (u64, u64) {
        let pairs = [
            (MountFlags::RDONLY, ATTR_RDONLY),
            (MountFlags::NOSUID, ATTR_NOSUID),
            (MountFlags::NODEV, ATTR_NODEV),
            (MountFlags::NOEXEC, ATTR_NOEXEC),
            (MountFlags::NODIRATIME, ATTR_NODIRATIME),
            (MountFlags::NOSYMFOLLOW, ATTR_NOSYMFOLLOW),
        ];
        let set = pairs.iter().filter(|(f, _)| self.flags.contains(*f)).fold(0, |a, (_, b)| a | b);
        if self.flags.contains(MountFlags::NOATIME) {
            (set | ATTR_NOATIME, ATTR_ATIME_MASK)
        } else if self.flags.contains(MountFlags::STRICTATIME) {
            (set | ATTR_STRICTATIME, ATTR_ATIME_MASK)
        } else if self.flags.contains(MountFlags::RELATIME) {
            (set, ATTR_ATIME_MASK)
        } else {
            (set, 0)
        }
    }
}

/// The flag a word stands for, and whether it sets or clears it.
fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "mand" => (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
        "nomand" => (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        "symfollow" => (MountFlags::NOSYMFOLLOW, false),
        "silent" => (MountFlags::SILENT, true),
        "loud" => (MountFlags::SILENT, false),
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<MountPropagationFlags> {
    let (recursive, word) = match word.strip_prefix('r') {
        Some(rest) => (MountPropagationFlags::REC, rest),
        None => (MountPropagationFlags::empty(), word),
    };
    let kind = match word {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

// linux/mount.h
const ATTR_RDONLY: u64 = 0x1;
const ATTR_NOSUID: u64 = 0x2;
const ATTR_NODEV: u64 = 0x4;
const ATTR_NOEXEC: u64 = 0x8;
const ATTR_ATIME_MASK: u64 = 0x70;
const ATTR_NOATIME: u64 = 0x10;
const ATTR_STRICTATIME: u64 = 0x20;
const ATTR_NODIRATIME: u64 = 0x80;
const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;
