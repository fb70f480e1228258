//! Runc's record of a container (`state.json`), as far as it matters to an exec.
//!
//! A field that is not known here may change what an exec means, so a record that has one is not
//! read at all: the runtime that wrote it knows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The record.
#[derive(Debug, Deserialize)]
pub(in crate::engine) struct Record {
    pub(super) cgroup_paths: BTreeMap<String, PathBuf>,
    #[serde(default)]
    pub(super) rootless: bool,
    #[serde(default)]
    pub(super) intel_rdt_path: String,
    pub(super) config: Config,
}

/// What the runtime made of the spec.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    pub(super) namespaces: Vec<Namespace>,
    pub(super) capabilities: Option<Capabilities>,
    pub(super) rlimits: Option<Vec<Limit>>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) no_new_keyring: bool,
    pub(super) apparmor_profile: String,
    pub(super) process_label: String,
    pub(super) seccomp: Option<Seccomp>,
    pub(super) rootless_euid: bool,
    pub(super) rootless_cgroups: bool,
    // Of runc 1.2 and later; execs heed them.
    pub(super) personality: Option<IgnoredAny>,
    pub(super) scheduler: Option<IgnoredAny>,
    #[serde(alias = "ioPriority")]
    pub(super) io_priority: Option<IgnoredAny>,
    pub(super) exec_cpu_affinity: Option<IgnoredAny>,
    pub(super) intel_rdt: Option<IgnoredAny>,
    // What follows is about the init, its mounts and its cgroups; no_new_privileges is one of
    // those that every process says of itself.
    #[serde(rename = "no_new_privileges")]
    _no_new_privileges: IgnoredAny,
    #[serde(rename = "no_pivot_root")]
    _no_pivot_root: IgnoredAny,
    #[serde(rename = "parent_death_signal")]
    _parent_death_signal: IgnoredAny,
    #[serde(rename = "rootfs")]
    _rootfs: IgnoredAny,
    #[serde(rename = "umask")]
    _umask: IgnoredAny,
    #[serde(rename = "readonlyfs")]
    _readonlyfs: IgnoredAny,
    #[serde(rename = "rootPropagation")]
    _root_propagation: IgnoredAny,
    #[serde(rename = "mounts")]
    _mounts: IgnoredAny,
    #[serde(rename = "devices")]
    _devices: IgnoredAny,
    #[serde(rename = "mount_label")]
    _mount_label: IgnoredAny,
    #[serde(rename = "hostname")]
    _hostname: IgnoredAny,
    #[serde(rename = "domainname")]
    _domainname: IgnoredAny,
    #[serde(rename = "networks")]
    _networks: IgnoredAny,
    #[serde(rename = "routes")]
    _routes: IgnoredAny,
    #[serde(rename = "cgroups")]
    _cgroups: IgnoredAny,
    #[serde(rename = "uid_mappings")]
    _uid_mappings: IgnoredAny,
    #[serde(rename = "gid_mappings")]
    _gid_mappings: IgnoredAny,
    #[serde(rename = "mask_paths")]
    _mask_paths: IgnoredAny,
    #[serde(rename = "readonly_paths")]
    _readonly_paths: IgnoredAny,
    #[serde(rename = "sysctl")]
    _sysctl: IgnoredAny,
    #[serde(rename = "Hooks", alias = "hooks")]
    _hooks: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    #[serde(rename = "labels")]
    _labels: IgnoredAny,
}

/// A namespace of the container.
#[derive(Debug, Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// Capabilities by name, from the record or from a spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Capabilities {
    #[serde(alias = "Bounding")]
    pub(super) bounding: Option<Vec<String>>,
    #[serde(alias = "Effective")]
    pub(super) effective: Option<Vec<String>>,
    #[serde(alias = "Permitted")]
    pub(super) permitted: Option<Vec<String>>,
    #[serde(alias = "Inheritable")]
    pub(super) inheritable: Option<Vec<String>>,
    #[serde(alias = "Ambient")]
    pub(super) ambient: Option<Vec<String>>,
}

/// A limit, by number.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    #[serde(rename = "type")]
    pub(super) resource: u32,
    pub(super) hard: u64,
    pub(super) soft: u64,
}

/// What matters of a filter beside its code, which is read from the init.
#[derive(Debug, Deserialize)]
pub(super) struct Seccomp {
    #[serde(default)]
    pub(super) flags: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    pub(super) listener_path: String,
}

impl Record {
    /// The record in a container's state directory, when every field of it is known.
    pub(in crate::engine) fn read(home: &Path) -> Option<Self> {
        let text = std::fs::read(home.join("state.json")).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|err| crate::log::debugging!("state.json: {err}"))
            .ok()
    }
}
