//! Writing layers.

mod scan;
mod write;

use std::io::Write;
use std::path::PathBuf;

use gantry_core::Digest;
use gantry_errdefs::Result;

use crate::compression::Compression;

/// What to write as a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// The difference between two whole trees, mounted or plain.
    Trees {
        /// The older tree; `None` for an empty one.
        lower: Option<PathBuf>,
        /// The newer tree.
        upper: PathBuf,
    },
    /// The upper directory of an overlay, read as it is: its whiteouts and opaque directories
    /// become those of the layer. Costs what changed, not what the trees hold.
    OverlayUpper {
        /// The upper directory.
        upper: PathBuf,
        /// The overlay is mounted with `userxattr`.
        userxattr: bool,
    },
}

/// How to write a layer.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Compression of what is written.
    pub compression: Compression,
    /// The latest time of modification to write, in seconds since 1970; later ones become it, as
    /// do those of whiteouts (else 0).
    pub source_date_epoch: Option<i64>,
    /// Write times to the nanosecond. Off, they are cut to seconds, as other builders do: a
    /// record for the fraction would add a kilobyte to most entries.
    pub precise_times: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diffed {
    /// Digest of the plain tar stream.
    pub diff_id: Digest,
    /// Bytes of the plain tar stream.
    pub diff_size: u64,
    /// Digest of what went to the writer; equal to `diff_id` without compression.
    pub digest: Digest,
    /// Bytes that went to the writer.
    pub size: u64,
    /// Entries written.
    pub entries: u64,
}

/// Writes the layer that makes the older tree of `changes` into the newer one.
///
/// The bytes depend on the trees and options alone: names are sorted, owners are numbers, times
/// of access are left out. Parents of what changed are written too, so that a layer can be
/// applied without those below it.
///
/// # Errors
/// FailedPrecondition for an overlay that moved directories or data out of sight (`redirect_dir`,
/// `metacopy`): compare its mounted tree instead. Else the class of the I/O error.
pub fn diff(changes: &Changes, writer: impl Write, options: &DiffOptions) -> Result<Diffed> {
    let (root, list) = scan::scan(changes, options.precise_times)?;
    write::write(&root, &list, writer, options)
}
