//! The commands, one group a file.

pub(crate) mod containers;
pub(crate) mod content;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod images;
pub(crate) mod leases;
pub(crate) mod namespaces;
pub(crate) mod oci;
pub(crate) mod plugins;
pub(crate) mod resources;
pub(crate) mod run;
pub(crate) mod shims;
pub(crate) mod snapshots;
pub(crate) mod tasks;
pub(crate) mod transfer;
pub(crate) mod version;
