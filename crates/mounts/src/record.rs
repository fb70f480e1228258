//! Activations as they are kept.

use std::path::PathBuf;
use std::time::SystemTime;

use gantry_core::Labels;
use gantry_mount::Mount;
use serde::{Deserialize, Serialize};

/// A mount that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveMount {
    /// What was mounted.
    pub mount: Mount,
    /// When.
    pub mounted_at: SystemTime,
    /// Where.
    pub mount_point: PathBuf,
}

/// Mounts that were activated under a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activation {
    /// The name.
    pub name: String,
    /// Mounts that were made.
    pub active: Vec<ActiveMount>,
    /// Mounts that are the caller's to make.
    pub system: Vec<Mount>,
    /// Labels.
    pub labels: Labels,
}

/// The version written into every file.
const VERSION: u32 = 1;

/// The file of an activation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) namespace: String,
    name: String,
    pub(crate) lease: Option<String>,
    active: Vec<ActiveRecord>,
    system: Vec<MountRecord>,
    labels: Labels,
}

#[derive(Debug, Serialize, Deserialize)]
struct ActiveRecord {
    #[serde(flatten)]
    mount: MountRecord,
    mounted_at: SystemTime,
    mount_point: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct MountRecord {
    kind: String,
    source: String,
    target: String,
    options: Vec<String>,
}

impl Record {
    pub(crate) fn new(namespace: &str, lease: Option<&str>, activation: &Activation) -> Self {
        let active = activation.active.iter().map(|a| ActiveRecord {
            mount: MountRecord::of(&a.mount),
            mounted_at: a.mounted_at,
            mount_point: a.mount_point.clone(),
        });
        Self {
            version: VERSION,
            namespace: namespace.to_owned(),
            name: activation.name.clone(),
            lease: lease.map(str::to_owned),
            active: active.collect(),
            system: activation.system.iter().map(MountRecord::of).collect(),
            labels: activation.labels.clone(),
        }
    }

    pub(crate) fn activation(self) -> Activation {
        let active = self.active.into_iter().map(|a| ActiveMount {
            mount: a.mount.mount(),
            mounted_at: a.mounted_at,
            mount_point: a.mount_point,
        });
        Activation {
            name: self.name,
            active: active.collect(),
            system: self.system.into_iter().map(MountRecord::mount).collect(),
            labels: self.labels,
        }
    }
}

impl MountRecord {
    fn of(mount: &Mount) -> Self {
        let Mount { kind, source, target, options } = mount.clone();
        Self { kind, source, target, options }
    }

    fn mount(self) -> Mount {
        Mount { kind: self.kind, source: self.source, target: self.target, options: self.options }
    }
}
