//! The cgroups of a container: its pids, its use of resources, and being out of memory.
//!
//! Found once, through `/proc/<pid>/cgroup` of the init, after the runtime has made them. With
//! version 1 every controller has a hierarchy and a path of its own; hybrid hosts, where an
//! empty version 2 hierarchy is mounted beside them, count as version 1.

mod files;
mod oom;
mod v1;
mod v2;

use std::path::{Path, PathBuf};

use gantry_api::Payload as _;
use gantry_errdefs::{Error, Result, ResultExt as _};
use prost_types::Any;
use serde::{Deserialize, Serialize};

pub(crate) use oom::{LOOKS, OomWatch};

/// Where cgroup filesystems are.
const ROOT: &str = "/sys/fs/cgroup";
/// `f_type` of a cgroup version 2 filesystem.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Nested cgroups deeper than this are not looked into.
const DEPTH_MAX: usize = 16;

/// The cgroups of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cgroup {
    /// Version 1: directory by controller.
    V1(Vec<(String, PathBuf)>),
    /// Version 2: the one directory.
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroups that `pid` is in.
    ///
    /// # Errors
    /// The process is gone, or /proc cannot be read.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/cgroup");
        let text = std::fs::read_to_string(&path).context(|| path)?;
        Ok(Self::parse(&text, is_unified(), Path::new(ROOT)))
    }

    fn parse(text: &str, unified: bool, root: &Path) -> Self {
        let lines = text.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?.trim_start_matches('/')))
        });
        if unified {
            let mut lines = lines;
            let own = lines.find(|(controllers, _)| controllers.is_empty());
            return Self::V2(root.join(own.map_or("", |(_, path)| path)));
        }
        let mut all = Vec::new();
        for (controllers, path) in lines.filter(|(controllers, _)| !controllers.is_empty()) {
            // A hierarchy of several controllers is mounted under all their names together, with
            // a link for each.
            for name in controllers.split(',') {
                let name = name.strip_prefix("name=").unwrap_or(name);
                all.push((name.to_owned(), root.join(name).join(path)));
            }
        }
        Self::V1(all)
    }

    /// The directory of a controller.
    pub(crate) fn directory(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V1(all) => {
                all.iter().find(|(name, _)| name == controller).map(|(_, path)| path.as_path())
            }
            Self::V2(path) => Some(path),
        }
    }

    /// Every pid in the container's cgroups, nested ones included; none when they cannot tell.
    pub(crate) fn pids(&self) -> Option<Vec<u32>> {
        let directory = match self {
            Self::V2(path) => Some(path.as_path()),
            Self::V1(_) => ["devices", "pids", "memory", "freezer"]
                .iter()
                .find_map(|name| self.directory(name)),
        }?;
        // The root is what a process without a cgroup of its own is in.
        if directory.parent().is_none_or(|parent| parent == Path::new("/sys/fs")) {
            return None;
        }
        let mut pids = Vec::new();
        collect_pids(directory, DEPTH_MAX, &mut pids).then_some(pids)
    }

    /// Current use, as the message clients expect for this version.
    ///
    /// # Errors
    /// NotFound when the cgroup is gone.
    pub(crate) fn stats(&self) -> Result<Any> {
        let anything = match self {
            Self::V1(all) => all.iter().any(|(_, path)| path.is_dir()),
            Self::V2(path) => path.is_dir(),
        };
        if !anything {
            return Err(Error::not_found("cgroup does not exist"));
        }
        Ok(match self {
            Self::V1(_) => Any::pack(&v1::metrics(self)),
            Self::V2(path) => Any::pack(&v2::metrics(path)),
        })
    }
}

fn is_unified() -> bool {
    // The type of the field differs between architectures; the value fits.
    rustix::fs::statfs(ROOT).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC)
}

fn collect_pids(directory: &Path, depth: usize, pids: &mut Vec<u32>) -> bool {
    let Ok(text) = std::fs::read_to_string(directory.join("cgroup.procs")) else { return false };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    let Ok(entries) = std::fs::read_dir(directory) else { return true };
    for entry in entries.flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // One that vanishes meanwhile has no processes.
            collect_pids(&entry.path(), depth - 1, pids);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hosts_count_as_version_one() {
        let text = "9:name=systemd:/t\n4:memory:/a/t\n1:cpu,cpuacct:/t\n0::/t\n";
        let cgroup = Cgroup::parse(text, false, Path::new("/c"));
        assert_eq!(cgroup.directory("memory"), Some(Path::new("/c/memory/a/t")));
        assert_eq!(cgroup.directory("cpuacct"), Some(Path::new("/c/cpuacct/t")));
        assert_eq!(cgroup.directory("systemd"), Some(Path::new("/c/systemd/t")));
        assert_eq!(cgroup.directory("rdma"), None);
    }

    #[test]
    fn unified_hosts_have_one_directory() {
        let cgroup = Cgroup::parse("0::/pod/t:x\n", true, Path::new("/c"));
        assert_eq!(cgroup, Cgroup::V2("/c/pod/t:x".into()));
    }
}
