//! The mount table, `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use gantry_errdefs::{Error, Result, ResultExt as _};

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
    parse_mountinfo(&fs::read("/proc/self/mountinfo").context(|| "/proc/self/mountinfo")?)
}

/// Parses a mount table; octal escapes (`\040`) are undone.
///
/// # Errors
/// DataLoss naming the line that is malformed.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountInfo>> {
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                Error::data_loss(format!("mount table: malformed line {line:?}"))
            })
        })
        .collect()
}

/// `id parent device root mount-point options tag* - type source super-options`
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|b| *b == b' ').map(unescape);
    let id = text(fields.next()?).parse().ok()?;
    let parent = text(fields.next()?).parse().ok()?;
    let device = text(fields.next()?);
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text(fields.next()?);
    let propagation = fields.by_ref().map_while(|f| (f != b"-").then(|| text(f))).collect();
    Some(MountInfo {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        propagation,
        fs_type: text(fields.next()?),
        source: text(fields.next()?),
        // Filesystems without options may leave the field out.
        super_options: fields.next().map(text).unwrap_or_default(),
    })
}

/// Undoes `\ooo`; anything else after a backslash stays as it is.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if let (b'\\', &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) = (first, tail) {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

fn text(field: Vec<u8>) -> String {
    String::from_utf8_lossy(&field).into_owned()
}

fn path(field: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(field))
}
