//! What the shim leaves on disk, in the bundle.
//!
//! Everything is JSON or plain text that a person can read, and every JSON file says its version.
//! A reader that knows a smaller version may read on: fields are only added.
//!
//! | file | written | read by |
//! |---|---|---|
//! | `shim.json` | by the serving process before it serves: [`ShimRecord`] | a later shim that takes over (live upgrade), `gantry doctor` |
//! | `init.pid` | by the runtime at create | `delete`, when no exit record exists |
//! | `exit-<id>.json` | at each process's exit, before anyone is told: [`ExitRecord`] | the daemon after a restart, `delete` |
//! | `shim-options.json` | at create: [`TaskOptions`], what the runtime was called with | `delete`, a later shim |
//! | `log.json` | by the runtime | the shim, for error texts |
//! | `address` | by `start`: the address alone | daemons before 1.7, after a restart |
//!
//! `<id>` in `exit-<id>.json` is the container's id for its init and the exec id for an exec. An
//! exec's record goes away with the exec; the init's stays until the bundle goes.
//!
//! A record is written to a temporary file and renamed, so that it is whole or absent whatever
//! becomes of the shim. An init's exit is synced as well, since the daemon's own records of the
//! container survive a power cut; everything else here is about processes that do not.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_errdefs::{Error, Result, ResultExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::reaper::Exit;

/// The version written into every file.
pub const VERSION: u32 = 1;

/// How a process ended: `exit-<id>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The container.
    pub container_id: String,
    /// The exec; empty for the init.
    pub exec_id: String,
    /// Its pid.
    pub pid: u32,
    /// Exit code, or 128 + the signal.
    pub exit_status: u32,
    /// Seconds since 1970.
    pub exited_at_s: u64,
    /// Nanoseconds within that second.
    pub exited_at_ns: u32,
}

impl ExitRecord {
    /// The record of `exit`.
    pub fn new(container_id: &str, exec_id: &str, pid: u32, exit: Exit) -> Self {
        let since = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at_s: since.as_secs(),
            exited_at_ns: since.subsec_nanos(),
        }
    }

    /// When the process ended.
    pub fn exited_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::new(self.exited_at_s, self.exited_at_ns)
    }

    /// Where the record of a process is; `id` is the container's for its init.
    pub fn path(bundle: &Path, id: &str) -> PathBuf {
        bundle.join(format!("exit-{id}.json"))
    }

    /// Writes the record, an init's durably. Call before anyone is told of the exit.
    ///
    /// # Errors
    /// The bundle cannot be written to.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        let id = if self.exec_id.is_empty() { &self.container_id } else { &self.exec_id };
        let path = Self::path(bundle, id);
        gantry_failpoint::hit("shim.exit-record").context(|| path.display().to_string())?;
        save(&path, self, self.exec_id.is_empty())
    }

    /// Reads the record of a process; none when it has not ended.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(bundle: &Path, id: &str) -> Result<Option<Self>> {
        load(&Self::path(bundle, id))
    }
}

/// Who serves: `shim.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The pid of the serving process.
    pub pid: u32,
    /// The daemon's namespace.
    pub namespace: String,
    /// The container or sandbox it was started for.
    pub id: String,
    /// The daemon's gRPC socket.
    pub address: String,
    /// Where events go; empty when they go through the daemon's binary.
    pub ttrpc_address: String,
    /// The program's own version.
    pub binary_version: String,
}

impl ShimRecord {
    /// Writes the record.
    ///
    /// # Errors
    /// The bundle cannot be written to.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join("shim.json");
        gantry_failpoint::hit("shim.record").context(|| path.display().to_string())?;
        save(&path, self, false)
    }
}

/// How the runtime was called: `shim-options.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOptions {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The runtime's program.
    pub binary: String,
    /// The directory of its records, without the namespace.
    pub root: String,
    /// Cgroups through systemd.
    pub systemd_cgroup: bool,
    /// The criu that the runtime is to use; empty for the one on PATH.
    #[serde(default)]
    pub criu: String,
}

impl TaskOptions {
    /// Writes the options.
    ///
    /// # Errors
    /// The bundle cannot be written to.
    pub fn save(&self, bundle: &Path) -> Result<()> {
        let path = Self::path(bundle);
        gantry_failpoint::hit("shim.options").context(|| path.display().to_string())?;
        save(&path, self, false)
    }

    /// Reads them back; none when the container was never created.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(bundle: &Path) -> Result<Option<Self>> {
        load(&Self::path(bundle))
    }

    fn path(bundle: &Path) -> PathBuf {
        bundle.join("shim-options.json")
    }
}

fn save<T: Serialize>(path: &Path, record: &T, durable: bool) -> Result<()> {
    let name = || path.display().to_string();
    let text = serde_json::to_vec(record)
        .map_err(|err| Error::internal(format!("{}: {err}", path.display())))?;
    let temporary = path.with_extension("json.tmp");
    let mut file = File::create(&temporary).context(name)?;
    file.write_all(&text).context(name)?;
    if durable {
        file.sync_data().context(name)?;
    }
    fs::rename(&temporary, path).context(name)?;
    match path.parent() {
        Some(directory) if durable => {
            File::open(directory).and_then(|d| d.sync_all()).context(name)
        }
        _ => Ok(()),
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context(|| path.display().to_string())?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|err| Error::data_loss(format!("{}: {err}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let exit = Exit { status: 137, at: UNIX_EPOCH + Duration::new(5, 7) };
        let record = ExitRecord::new("box", "", 42, exit);
        assert_eq!(ExitRecord::load(dir.path(), "box").expect("no record is fine"), None);
        record.save(dir.path()).expect("saved");
        let back = ExitRecord::load(dir.path(), "box").expect("loads").expect("is there");
        assert_eq!(back, record);
        assert_eq!(back.exited_at(), exit.at);
    }

    /// The text that shims of version 1 have written; a reader must take it for ever.
    #[test]
    fn version_one_is_readable() {
        let text = r#"{"version":1,"container_id":"c","exec_id":"e","pid":9,"exit_status":3,
            "exited_at_s":10,"exited_at_ns":20,"later":"addition"}"#;
        let record: ExitRecord = serde_json::from_str(text).expect("parses");
        assert_eq!((record.pid, record.exit_status, record.exited_at_s), (9, 3, 10));
    }

    #[test]
    fn damage_is_not_absence() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(ExitRecord::path(dir.path(), "box"), "{").expect("written");
        let err = ExitRecord::load(dir.path(), "box").expect_err("damaged");
        assert_eq!(err.class(), gantry_errdefs::Class::DataLoss);
    }
}
