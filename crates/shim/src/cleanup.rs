//! `delete`: cleans up after a shim that died, and tells how the container ended.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gantry_api::containerd::task::v2::DeleteResponse;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::UnmountFlags;
use prost::Message as _;

use crate::args::Args;
use crate::engine::{Engine as _, Runc};
use crate::log::warning;
use crate::options::{self, Options};
use crate::reaper::Reaper;
use crate::state::{ExitRecord, TaskOptions};
use crate::{clock, log};

/// 128 + SIGKILL: what a container ends with that had to be killed here.
const STATUS_KILLED: u32 = 137;

/// Runs `delete` for the container of the bundle that `-bundle` names, or that is the working
/// directory. Returns what to print. Does as much as it can: what is gone already is fine.
///
/// # Errors
/// The flags are incomplete.
pub(crate) fn delete(args: &Args) -> Result<Vec<u8>> {
    if args.id.is_empty() || args.namespace.is_empty() {
        return Err(Error::invalid_argument("delete: -id and -namespace are required"));
    }
    let bundle = if args.bundle.is_empty() {
        std::env::current_dir().context(|| "working directory")?
    } else {
        PathBuf::from(&args.bundle)
    };
    log::open(&bundle, args.debug);
    let saved = TaskOptions::load(&bundle).unwrap_or_else(|err| {
        warning!("{err}");
        None
    });
    let saved = saved.unwrap_or_else(|| Options::default().saved());
    let config = options::runtime(&saved, &args.namespace, &bundle);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "runtime")?;
    let removed = runtime.block_on(async {
        let reaper = Reaper::new();
        tokio::spawn(reaper.clone().run());
        Runc::new(config, reaper).delete(&args.id, true).await
    });
    if let Err(err) = removed {
        warning!("{err}");
    }
    let flags = UnmountFlags { detach: true, ..UnmountFlags::default() };
    if let Err(err) = gantry_mount::unmount_recursive(&bundle.join("rootfs"), flags) {
        warning!("unmount: {err}");
    }
    Ok(ending(&bundle, &args.id).encode_to_vec())
}

/// How the container ended: as recorded, or by being killed now.
fn ending(bundle: &Path, id: &str) -> DeleteResponse {
    let record = ExitRecord::load(bundle, id).unwrap_or_else(|err| {
        warning!("{err}");
        None
    });
    match record {
        Some(record) => DeleteResponse {
            pid: record.pid,
            exit_status: record.exit_status,
            exited_at: Some(clock::timestamp(record.exited_at())),
        },
        None => {
            let pid = std::fs::read_to_string(bundle.join("init.pid")).unwrap_or_default();
            DeleteResponse {
                pid: pid.trim().parse().unwrap_or(0),
                exit_status: STATUS_KILLED,
                exited_at: Some(clock::timestamp(SystemTime::now())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reaper::Exit;

    #[test]
    fn a_recorded_exit_beats_a_guess() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("init.pid"), "77").expect("written");
        let guess = ending(dir.path(), "box");
        assert_eq!((guess.pid, guess.exit_status), (77, STATUS_KILLED));
        let exit = Exit { status: 3, at: SystemTime::now() };
        ExitRecord::new("box", "", 78, exit).save(dir.path()).expect("saved");
        let known = ending(dir.path(), "box");
        assert_eq!((known.pid, known.exit_status), (78, 3));
    }
}
