//! Two calls of runc that need no runc.
//!
//! Executing a Go program costs more than everything `runc start` and a plain `runc delete` do:
//! - *start* opens the FIFO `exec.fifo` that the init waits on and removes it;
//! - *delete* of a stopped container removes its (empty) cgroups and its state directory.
//!
//! Both are done here when the runtime is runc itself and its record says there is nothing more
//! to it (no poststop hooks, no resctrl group, no systemd unit). In every other case, and on
//! anything unexpected, the answer is "not done" and the caller executes the runtime.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::io::Interest;

use super::RuncConfig;
use crate::fd;

/// The init reaches the FIFO a moment after `create` returned, whatever the load.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Lets the init of `id` go. `false`: not done, ask the runtime.
pub(super) async fn start(config: &RuncConfig, id: &str) -> Result<bool> {
    if !is_runc(config) {
        return Ok(false);
    }
    let home = config.root.join(id);
    // Runc has run these in create so far; whoever changes that must be asked.
    if Record::read(&home).is_none_or(|record| record.has_hook("poststart")) {
        return Ok(false);
    }
    let fifo = home.join("exec.fifo");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(&fifo, flags, Mode::empty()) else { return Ok(false) };
    let failed = |why: &dyn std::fmt::Display| {
        Error::unknown(format!("OCI runtime start failed: {}: {why}", fifo.display()))
    };
    let fd = fd::watch(fd, Interest::READABLE).map_err(|err| failed(&err))?;
    let mut byte = [0_u8; 1];
    let read = fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut byte)?));
    match tokio::time::timeout(START_DEADLINE, read).await {
        Ok(Ok(1)) => {}
        Ok(Ok(_)) => return Err(failed(&"the container's init went away")),
        Ok(Err(err)) => return Err(failed(&err)),
        Err(_) => return Err(failed(&"the container's init does not answer")),
    }
    // Its presence is how runc tells created from running.
    fs::remove_file(&fifo).map_err(|err| failed(&err))?;
    Ok(true)
}

/// What matters here of runc's `state.json`.
#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    cgroup_paths: BTreeMap<String, PathBuf>,
    #[serde(default)]
    intel_rdt_path: String,
    config: RecordConfig,
}

#[derive(Deserialize)]
struct RecordConfig {
    #[serde(default, rename = "Hooks", alias = "hooks")]
    hooks: Option<BTreeMap<String, Option<Vec<IgnoredAny>>>>,
}

impl Record {
    /// The record in a container's state directory, when it is one of runc's.
    fn read(home: &Path) -> Option<Self> {
        let text = fs::read(home.join("state.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn has_hook(&self, kind: &str) -> bool {
        self.config.hooks.as_ref().and_then(|hooks| hooks.get(kind)).is_some_and(Option::is_some)
    }
}

/// Removes what is left of the stopped container `id`. `false`: not (wholly) done, ask the runtime.
pub(super) fn delete(config: &RuncConfig, id: &str) -> bool {
    if !is_runc(config) || config.systemd_cgroup {
        return false;
    }
    let home = config.root.join(id);
    let Some(record) = Record::read(&home) else { return false };
    if !record.intel_rdt_path.is_empty() || record.has_hook("poststop") {
        return false;
    }
    record.cgroup_paths.values().all(|path| remove_cgroup(path))
        && fs::remove_dir_all(&home).is_ok()
}

/// Removes a cgroup and those below it; one with processes is left to the runtime, which waits.
fn remove_cgroup(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => return true,
        Err(err) if err.kind() == ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    let Ok(entries) = fs::read_dir(path) else { return false };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove_cgroup(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(path).is_ok()
}

/// Whether the runtime is runc, by its name.
pub(super) fn is_runc(config: &RuncConfig) -> bool {
    Path::new(&config.binary).file_name().is_some_and(|name| name == "runc")
}
