//! Finding, and on teardown removing, what a daemon's work left on the machine.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::command::{Ctr, signal_pid};
use crate::daemon::Daemon;

/// Killed processes are gone within this.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// What is left, in words. Empty is clean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaks(Vec<String>);

impl Leaks {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line per leaked thing.
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// How many there are of each thing that may leak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Descriptors of the daemon.
    pub fds: usize,
    /// Mounts in its directories.
    pub mounts: usize,
    /// Processes of it, shims above all.
    pub processes: usize,
    /// Cgroups named after its namespace.
    pub cgroups: usize,
    /// Directories of snapshots.
    pub snapshots: usize,
    /// Half-written blobs.
    pub ingests: usize,
    /// Bundles.
    pub bundles: usize,
}

/// Counts what may leak.
pub(crate) fn count(daemon: &Daemon) -> Counters {
    let fds = daemon.running_pid().map(|pid| children(Path::new(&format!("/proc/{pid}/fd"))));
    let snapshots = daemon.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let ingests = daemon.root().join("io.containerd.content.v1.content/ingest");
    Counters {
        fds: fds.map_or(0, |fds| fds.len()),
        mounts: mounts_under(daemon.dir()).len(),
        processes: processes_of(daemon).len(),
        cgroups: cgroups_of(daemon.namespace()).len(),
        snapshots: children(&snapshots).len(),
        ingests: children(&ingests).len(),
        bundles: bundles(daemon).len(),
    }
}

/// Looks at mounts, shims, cgroups, bundles, sockets and snapshot directories.
pub(crate) fn find(daemon: &Daemon) -> Leaks {
    let mut found = Vec::new();
    for mount in mounts_under(daemon.dir()) {
        found.push(format!("mount {}", mount.display()));
    }
    for (pid, command) in processes_of(daemon) {
        found.push(format!("process {pid}: {command}"));
    }
    for cgroup in cgroups_of(daemon.namespace()) {
        found.push(format!("cgroup {}", cgroup.display()));
    }
    for bundle in bundles(daemon) {
        found.push(format!("bundle {}", bundle.display()));
    }
    for temporary in children(&daemon.root().join("tmpmounts")) {
        found.push(format!("temporary mount point {}", temporary.display()));
    }
    found.extend(snapshot_leaks(daemon));
    Leaks(found)
}

/// Tears down everything of a stopped daemon.
pub(crate) fn remove_all(daemon: &Daemon) {
    let mut victims: Vec<u32> = Vec::new();
    for (pid, _) in processes_of(daemon) {
        add_with_descendants(pid, &mut victims);
    }
    for cgroup in cgroups_of(daemon.namespace()) {
        let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        victims.extend(procs.lines().filter_map(|l| l.parse::<u32>().ok()));
    }
    for pid in &victims {
        signal_pid(*pid, Signal::KILL);
    }
    let deadline = Instant::now() + KILL_TIMEOUT;
    while Instant::now() < deadline && victims.iter().any(|p| alive(*p)) {
        std::thread::sleep(Duration::from_millis(10));
    }
    for mount in mounts_under(daemon.dir()).iter().rev() {
        let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
    }
    let mut cgroups = cgroups_of(daemon.namespace());
    cgroups.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    for cgroup in cgroups {
        let _ = fs::remove_dir(cgroup);
    }
    for root in ["/run/runc", "/run/containerd/runc"] {
        let _ = fs::remove_dir_all(Path::new(root).join(daemon.namespace()));
    }
}

/// Mount points under `dir`, in mount order.
fn mounts_under(dir: &Path) -> Vec<PathBuf> {
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    info.lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| PathBuf::from(p.replace("\\040", " ")))
        .filter(|p| p.starts_with(dir))
        .collect()
}

/// Processes, other than the daemon, whose command line names the daemon's directory, and shims
/// working in it.
fn processes_of(daemon: &Daemon) -> Vec<(u32, String)> {
    let dir = daemon.dir().to_string_lossy().into_owned();
    let running = daemon.running_pid();
    let own = std::process::id();
    pids()
        .filter(|pid| Some(*pid) != running && *pid != own)
        .filter_map(|pid| {
            let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&raw).replace('\0', " ");
            // Clients name the daemon's address too, but they are not its work.
            let is_client = ["/ctr ", "/gantry "].iter().any(|p| command.contains(p));
            let works_there = || {
                let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
                cwd.is_ok_and(|cwd| cwd.starts_with(&dir))
            };
            let is_its = (command.contains(&dir) && !is_client)
                || (command.contains("containerd-shim") && works_there());
            is_its.then_some((pid, command))
        })
        .collect()
}

/// The cgroups named after the namespace, in every hierarchy, children included.
fn cgroups_of(namespace: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(children(Path::new("/sys/fs/cgroup")).into_iter().filter(|p| p.is_dir()));
    for root in roots {
        let top = root.join(namespace);
        for child in children(&top).into_iter().filter(|p| p.is_dir()) {
            collect_dirs(&child, &mut found);
        }
    }
    found
}

fn collect_dirs(dir: &Path, found: &mut Vec<PathBuf>) {
    found.push(dir.to_owned());
    for child in children(dir).into_iter().filter(|p| p.is_dir() && !p.is_symlink()) {
        collect_dirs(&child, found);
    }
}

/// Bundles in the state and work directories.
fn bundles(daemon: &Daemon) -> Vec<PathBuf> {
    [daemon.state(), daemon.root()]
        .iter()
        .flat_map(|top| children(&top.join("io.containerd.runtime.v2.task")))
        .flat_map(|namespace| children(&namespace))
        .collect()
}

/// Directories of overlayfs snapshots that no record names. Works on a live daemon only.
fn snapshot_leaks(daemon: &Daemon) -> Vec<String> {
    if daemon.running_pid().is_none() {
        return Vec::new();
    }
    collect_garbage(&daemon.ctr());
    let base = daemon.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let dirs = children(&base).len();
    let ctr = daemon.ctr();
    let namespaces = ctr.ok(["namespaces", "ls", "-q"]);
    let records: usize = namespaces
        .lines()
        .map(|ns| ctr.in_namespace(ns).ok(["snapshots", "ls"]).lines().skip(1).count())
        .sum();
    // The same layer in two namespaces has one directory, so records may outnumber directories.
    if dirs > records {
        vec![format!("{dirs} snapshot directories for {records} records in {}", base.display())]
    } else {
        Vec::new()
    }
}

/// Makes the daemon run its garbage collector to the end: removed snapshots leave the disk then.
fn collect_garbage(ctr: &Ctr) {
    const LEASE: &str = "testkit-collects-garbage";
    let _ = ctr.run(["leases", "create", "--id", LEASE]);
    ctr.ok(["leases", "delete", "--sync", LEASE]);
}

fn add_with_descendants(pid: u32, list: &mut Vec<u32>) {
    if list.contains(&pid) {
        return;
    }
    list.push(pid);
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|c| c.parse().ok()) {
        add_with_descendants(child, list);
    }
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is dead, whoever should reap it.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn pids() -> impl Iterator<Item = u32> {
    children(Path::new("/proc")).into_iter().filter_map(|p| p.file_name()?.to_str()?.parse().ok())
}

/// The entries of a directory; none when it is missing.
fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|e| e.path()).collect()
}
