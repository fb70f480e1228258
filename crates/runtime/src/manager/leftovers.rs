//! What is on the machine for tasks that do not exist.
//!
//! A task's key is in the table from before its bundle is made until after it is gone. So what was
//! there before *and* after a moment at which the table did not have the key belongs to no task.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gantry_core::Namespace;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_mount::UnmountFlags;
use gantry_ttrpc::Address;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::table::Key;
use super::{Manager, blocking};
use crate::bootstrap::Bootstrap;
use crate::bundle::{self, Found};
use crate::journal::Journal;

/// What kind of thing was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeftoverKind {
    /// The directory of a task.
    Bundle,
    /// What a task wanted to keep over a reboot.
    Work,
    /// A mount inside a bundle.
    Mount,
    /// A shim process.
    Shim,
    /// The socket of a shim.
    Socket,
}

/// Something that belongs to no task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// The namespace of the task it was for; empty when it does not say.
    pub namespace: String,
    /// The id of that task.
    pub id: String,
    /// Its path, or the pid of a shim.
    pub what: String,
    /// Tells it from another of the same name: inode, mount id, start of the process.
    identity: u64,
}

impl Manager {
    /// Everything on the machine that belongs to no task. Sockets and processes count only when
    /// they are older than `min_age`: those that are being made have no key of ours yet. Empty
    /// while the tasks of an earlier run are still being looked for.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub async fn leftovers(&self, min_age: Duration) -> Result<Vec<Leftover>> {
        if !self.is_loaded() {
            return Ok(Vec::new());
        }
        let manager = self.clone();
        blocking(move || manager.find_leftovers(min_age)).await
    }

    /// Removes a leftover, if it still is one; false if it is not. A bundle with a shim that lives
    /// is taken back into service instead.
    ///
    /// # Errors
    /// Why it could not be removed.
    pub async fn remove_leftover(&self, leftover: &Leftover) -> Result<bool> {
        if leftover.kind == LeftoverKind::Bundle {
            return self.remove_bundle_left(leftover).await;
        }
        let (manager, leftover) = (self.clone(), leftover.clone());
        blocking(move || {
            if !manager.find_leftovers(Duration::ZERO)?.contains(&leftover) {
                return Ok(false);
            }
            let path = Path::new(&leftover.what);
            match leftover.kind {
                LeftoverKind::Bundle => return Ok(false),
                LeftoverKind::Work => bundle::remove_tree(path)?,
                LeftoverKind::Mount => gantry_mount::unmount(path, UnmountFlags::DETACH)?,
                LeftoverKind::Shim => kill(&leftover)?,
                LeftoverKind::Socket => {
                    fs::remove_file(path).context(|| path.display().to_string())?;
                }
            }
            Ok(true)
        })
        .await
    }

    async fn remove_bundle_left(&self, leftover: &Leftover) -> Result<bool> {
        let key = Key::new(&Namespace::new(leftover.namespace.as_str())?, &leftover.id);
        // From here on nobody makes a task of this name.
        let place = self.inner.bundles.bundle(&key.namespace, &key.id).path;
        if self.inner.table.reserve(&key, Journal::new(&place, false)).is_err() {
            return Ok(false);
        }
        let path = PathBuf::from(&leftover.what);
        if inode(&path) != Some(leftover.identity) {
            self.inner.table.forget(&key);
            return Ok(false);
        }
        let mut bundle = self.inner.bundles.bundle(&key.namespace, &key.id);
        bundle.path = path;
        if bundle.is_hidden() {
            let removed = blocking(move || bundle.remove()).await;
            self.inner.table.forget(&key);
            return removed.map(|()| true);
        }
        // As a bundle that an earlier run left.
        self.load(&key, bundle).await;
        Ok(true)
    }

    fn find_leftovers(&self, min_age: Duration) -> Result<Vec<Leftover>> {
        let mut found = Vec::new();
        self.bundles_left(&mut found);
        self.mounts_left(&mut found)?;
        self.shims_left(min_age, &mut found)?;
        self.sockets_left(min_age, &mut found);
        found.sort();
        Ok(found)
    }

    fn is_free(&self, namespace: &Namespace, id: &str) -> bool {
        !self.inner.table.holds(&Key::new(namespace, id))
    }

    fn bundles_left(&self, found: &mut Vec<Leftover>) {
        let mut left = |one: Found, kind, path: PathBuf| {
            let Some(before) = inode(&path) else { return };
            if self.is_free(&one.namespace, &one.id) && inode(&path) == Some(before) {
                found.push(Leftover {
                    kind,
                    namespace: one.namespace.as_str().to_owned(),
                    id: one.id,
                    what: path.display().to_string(),
                    identity: before,
                });
            }
        };
        for one in self.inner.bundles.list() {
            let path = one.bundle.path.clone();
            left(one, LeftoverKind::Bundle, path);
        }
        for one in self.inner.bundles.stale_work() {
            let path = one.bundle.work.clone();
            left(one, LeftoverKind::Work, path);
        }
    }

    fn mounts_left(&self, found: &mut Vec<Leftover>) -> Result<()> {
        let ours = || -> Result<Vec<(u64, PathBuf)>> {
            let mounts = gantry_mount::mountinfo()?.into_iter();
            let inside = mounts.filter(|m| m.mount_point.starts_with(&self.inner.config.state));
            Ok(inside.map(|m| (u64::from(m.id), m.mount_point)).collect())
        };
        let before = ours()?;
        let free: Vec<_> = before
            .into_iter()
            .filter_map(|(mount, path)| {
                let (namespace, id) = self.inner.bundles.owner(&path)?;
                self.is_free(&namespace, &id).then_some((mount, path, namespace, id))
            })
            .collect();
        if free.is_empty() {
            return Ok(());
        }
        let after = ours()?;
        for (mount, path, namespace, id) in free {
            if after.contains(&(mount, path.clone())) {
                found.push(Leftover {
                    kind: LeftoverKind::Mount,
                    namespace: namespace.as_str().to_owned(),
                    id,
                    what: path.display().to_string(),
                    identity: mount,
                });
            }
        }
        Ok(())
    }

    /// Shims that were started for this daemon and whose bundle is gone. One whose bundle is there
    /// goes with it.
    fn shims_left(&self, min_age: Duration, found: &mut Vec<Leftover>) -> Result<()> {
        for entry in fs::read_dir("/proc").context(|| "/proc")? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let Some(shim) = ShimProcess::read(pid) else { continue };
            let Ok(namespace) = Namespace::new(shim.namespace.as_str()) else { continue };
            if shim.address == self.inner.config.grpc_address
                && !shim.has_bundle
                && shim.age >= min_age
                && self.is_free(&namespace, &shim.id)
                && ShimProcess::read(pid).is_some_and(|again| again.started == shim.started)
            {
                found.push(Leftover {
                    kind: LeftoverKind::Shim,
                    namespace: shim.namespace,
                    id: shim.id,
                    what: pid.to_string(),
                    identity: shim.started,
                });
            }
        }
        Ok(())
    }

    fn sockets_left(&self, min_age: Duration, found: &mut Vec<Leftover>) {
        let Ok(entries) = fs::read_dir(&self.inner.config.socket_dir) else { return };
        let known: HashSet<PathBuf> = self
            .inner
            .bundles
            .list()
            .into_iter()
            .filter_map(|one| Bootstrap::load(&one.bundle.path).ok())
            .filter_map(|bootstrap| match bootstrap.address.parse() {
                Ok(Address::Path(path)) => Some(path),
                _ => None,
            })
            .collect();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let old = meta.modified().is_ok_and(|at| age(at) >= min_age);
            if !meta.file_type().is_socket() || !old || known.contains(&path) {
                continue;
            }
            let refused = UnixStream::connect(&path)
                .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
            if refused && inode(&path) == Some(meta.ino()) {
                found.push(Leftover {
                    kind: LeftoverKind::Socket,
                    namespace: String::new(),
                    id: String::new(),
                    what: path.display().to_string(),
                    identity: meta.ino(),
                });
            }
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

fn age(since: SystemTime) -> Duration {
    since.elapsed().unwrap_or_default()
}

/// A serving shim, as its command line tells.
struct ShimProcess {
    namespace: String,
    id: String,
    address: String,
    /// Ticks from boot to its start: with the pid, who it is.
    started: u64,
    age: Duration,
    /// Whether it works in a directory that exists.
    has_bundle: bool,
}

impl ShimProcess {
    fn read(pid: u32) -> Option<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(proc.join("cmdline")).ok()?;
        let args: Vec<&str> =
            line.split(|b| *b == 0).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
        let program = Path::new(args.first()?).file_name()?.to_str()?;
        // `start` and `delete` end by themselves.
        let verb = args.iter().any(|a| ["start", "delete"].contains(a));
        if !program.starts_with("containerd-shim") || verb {
            return None;
        }
        let flag = |name: &str| {
            let at = args.iter().position(|a| a.trim_start_matches('-') == name)?;
            args.get(at + 1).map(|value| (*value).to_owned())
        };
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        // Behind the name, which may hold anything: the 22nd field of proc_pid_stat(5).
        let started = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        let since_boot: f64 =
            fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
        let ticks = Duration::from_secs(1) / u32::try_from(clock_ticks_per_second()).ok()?;
        let start = ticks.checked_mul(u32::try_from(started).ok()?)?;
        Some(Self {
            namespace: flag("namespace")?,
            id: flag("id")?,
            address: flag("address")?,
            started,
            age: Duration::from_secs_f64(since_boot).saturating_sub(start),
            has_bundle: fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.exists()),
        })
    }
}

/// Kills a shim and the processes it is the parent of: nobody could reach them any more.
fn kill(shim: &Leftover) -> Result<()> {
    let what = || format!("shim {}", shim.what);
    let pid: i32 = shim.what.parse().map_err(|_| Error::internal(what()))?;
    let open = |pid: i32| {
        let pid = Pid::from_raw(pid)?;
        pidfd_open(pid, PidfdFlags::empty()).ok()
    };
    let Some(handle) = open(pid) else { return Ok(()) };
    // The handle is to whoever has the pid: it must still be the one that was found.
    let same = u32::try_from(pid).ok().and_then(ShimProcess::read);
    if same.is_none_or(|again| again.started != shim.identity) {
        return Ok(());
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split(' ').filter_map(|c| c.parse().ok()) {
        if let Some(child) = open(child) {
            let _ = pidfd_send_signal(&child, Signal::KILL);
        }
    }
    pidfd_send_signal(&handle, Signal::KILL).map_err(std::io::Error::from).context(what)
}
