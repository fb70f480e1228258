//! A hard limit on what is written to a snapshot, by the filesystem's project quotas.
//!
//! The directories of such a snapshot get a project of their own, with the limit that the label
//! asks for; more than that is refused (EDQUOT on ext4, ENOSPC on xfs), whoever
//! writes it through the overlay. A snapshot without parent is no overlay: there ext4 does not hold
//! writers with CAP_SYS_RESOURCE. The layers below do not
//! count. The filesystem must keep project quotas: ext4 made with `-O quota,project` and mounted
//! with `prjquota`, xfs mounted with `prjquota`.

use std::io;
use std::path::Path;

use gantry_core::Labels;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::quota;
use rustix::io::Errno;

use crate::label;

/// Projects from here on are snapshots', by their number; administrators and other programs use
/// small ones.
const PROJECT_BASE: u32 = 0x4000_0000;

/// What a limit may be, in bytes: less than this does not hold the directories themselves.
const LIMIT_MIN: u64 = 64 << 10;

/// Puts the new directories `dirs` of the snapshot in `dir` under the limit that the labels ask
/// for, if they do.
///
/// # Errors
/// InvalidArgument for a label that is no size; FailedPrecondition where the filesystem keeps no
/// project quotas; the I/O error.
pub(crate) fn limit(dir: &Path, dirs: &[&Path], labels: &Labels) -> Result<()> {
    let Some(text) = labels.get(label::QUOTA_SIZE) else { return Ok(()) };
    let bytes = text.parse::<u64>().ok().filter(|bytes| *bytes >= LIMIT_MIN).ok_or_else(|| {
        let key = label::QUOTA_SIZE;
        Error::invalid_argument(format!("label {key}: {text:?} is no size from {LIMIT_MIN} bytes"))
    })?;
    let project = project_of(dir)?;
    // The limit first: on a filesystem that keeps no quotas nothing is changed.
    quota::set_limit(dir, project, bytes).map_err(|e| refused(dir, e))?;
    for dir in dirs {
        quota::set_project(dir, project).map_err(|e| refused(dir, e))?;
    }
    Ok(())
}

/// Takes the limit of the snapshot in `dir` away again, so that its number can have another.
///
/// # Errors
/// The I/O error.
pub(crate) fn lift(dir: &Path, upper: &Path) -> Result<()> {
    match quota::project(upper) {
        Ok(project) if project >= PROJECT_BASE => {
            quota::set_limit(dir, project, 0).context(|| format!("quota of {}", dir.display()))
        }
        // Gone, or nothing there that knows of projects.
        _ => Ok(()),
    }
}

fn project_of(dir: &Path) -> Result<u32> {
    let number = dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    number.and_then(|number| number.checked_add(PROJECT_BASE)).ok_or_else(|| {
        Error::resource_exhausted(format!("no project is left for {}", dir.display()))
    })
}

fn refused(dir: &Path, err: io::Error) -> Error {
    match Errno::from_io_error(&err) {
        Some(Errno::SRCH | Errno::NOSYS | Errno::NOTTY | Errno::OPNOTSUPP) => {
            Error::failed_precondition(format!(
                "label {}: the filesystem of {} keeps no project quotas (prjquota)",
                label::QUOTA_SIZE,
                dir.display()
            ))
        }
        _ => Error::io(format!("quota of {}", dir.display()), err),
    }
}
