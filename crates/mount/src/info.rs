//! The mount table, `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::path::PathBuf;

use gantry_errdefs::Result;

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Id of the mount; may be reused after an unmount.
    pub id: u32,
    /// Id of the mount it is mounted on.
    pub parent: u32,
    /// Device number as `major:minor`.
    pub device: String,
    /// Which directory of the filesystem is the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Per-mount options, comma separated.
    pub options: String,
    /// Propagation tags such as `shared:12` and `master:3`.
    pub propagation: Vec<String>,
    /// Filesystem type.
    pub fs_type: String,
    /// Source as given at mount time.
    pub source: String,
    /// Options of the filesystem itself, comma separated.
    pub super_options: String,
}

/// Reads the mount table of this process.
///
/// # Errors
/// The I/O error, or DataLoss for a line the kernel would not write.
pub fn mountinfo() -> Result<Vec<MountInfo>> {
    todo!()
}

/// Parses a mount table; octal escapes (`\040`) are undone.
///
/// # Errors
/// DataLoss naming the line that is malformed.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountInfo>> {
    let _ = text;
    todo!()
}
