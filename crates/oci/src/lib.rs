//! Building OCI runtime specs from image configs and options.
//!
//! For whoever makes containers: the client library, the command line, CRI. The spec is what
//! containerd's own clients make by default: five namespaces, fourteen capabilities, the usual
//! mounts, masked and read-only paths, a device allow list. Options are methods of
//! [`SpecBuilder`], applied in the order they are called; the first error is kept and returned
//! by [`SpecBuilder::build`].
//!
//! ```
//! # fn main() -> gantry_errdefs::Result<()> {
//! let spec = gantry_oci::SpecBuilder::new("default", "web")
//!     .args(["sleep", "60"])
//!     .env("COLOUR=blue")
//!     .memory_limit(64 << 20)
//!     .cpus(0.5)
//!     .read_only()
//!     .build()?;
//! let json = gantry_oci::to_json(&spec)?;
//! # assert!(!json.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here mounts or starts anything. Names of users are looked up in a [`UserDatabase`],
//! which can be read from a mounted root filesystem without leaving it.
#![forbid(unsafe_code)]

mod builder;
mod capabilities;
mod defaults;
mod devices;
mod privileged;
mod resources;
mod seccomp;
mod users;

#[cfg(test)]
mod tests;

pub use oci_spec::runtime;
pub use oci_spec::runtime::{LinuxResources, Process, Spec};

pub use builder::SpecBuilder;
pub use capabilities::{current_capabilities, default_capabilities};
pub use defaults::{DEFAULT_PATH, default_spec};
pub use seccomp::default_profile as default_seccomp_profile;
pub use users::{User, UserDatabase};

use gantry_errdefs::{Error, Result};

/// Type URL of a spec within a container record; the value is JSON.
pub const SPEC_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Type URL of the process of an exec; the value is JSON.
pub const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Type URL of resources in a task update; the value is JSON.
pub const RESOURCES_TYPE_URL: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// The JSON of a spec, process or resources, as it goes into an `Any`.
///
/// # Errors
/// Internal, when the value can't be encoded; our own types always can.
pub fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|e| Error::internal(format!("encoding a runtime spec: {e}")).with_source(e))
}

/// Reads the JSON of a spec, process or resources.
///
/// # Errors
/// InvalidArgument when the JSON does not fit.
pub fn from_json<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json)
        .map_err(|e| Error::invalid_argument(format!("runtime spec: {e}")).with_source(e))
}
