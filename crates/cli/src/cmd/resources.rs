//! Bounds of a container's cgroup, as `run`, `containers create` and `tasks update` take them.

use clap::Args;
use gantry_client::oci::runtime::LinuxResources;
use gantry_client::oci::{Spec, SpecBuilder};
use gantry_errdefs::{Error, Result};

/// Flags; what is not given stays as it is.
#[derive(Debug, Args)]
pub(crate) struct ResourceFlags {
    /// Memory limit in bytes
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<u64>,
    /// Number of processors
    #[arg(long, value_name = "COUNT")]
    cpus: Option<f64>,
    /// Weight against other containers
    #[arg(long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Processor time per period, in microseconds
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Period, in microseconds
    #[arg(long, value_name = "TIME", default_value_t = 0)]
    cpu_period: u64,
    /// Processors, such as 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes, such as 0-1
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most processes at a time; -1 for no limit
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
}

impl ResourceFlags {
    /// Adds them to a spec.
    ///
    /// # Errors
    /// InvalidArgument for flags that exclude each other.
    pub(crate) fn apply(&self, mut spec: SpecBuilder) -> Result<SpecBuilder> {
        if let Some(bytes) = self.memory_limit {
            spec = spec.memory_limit(bytes);
        }
        if let Some(shares) = self.cpu_shares {
            spec = spec.cpu_shares(shares);
        }
        match (self.cpus, self.cpu_quota) {
            (Some(_), Some(_)) => {
                let why = "cpus and quota/period should be used separately";
                return Err(Error::invalid_argument(why));
            }
            (Some(count), None) => spec = spec.cpus(count),
            (None, Some(quota)) => spec = spec.cpu_quota(quota, self.cpu_period),
            (None, None) => {}
        }
        if let Some(list) = &self.cpuset_cpus {
            spec = spec.cpuset_cpus(list);
        }
        if let Some(list) = &self.cpuset_mems {
            spec = spec.cpuset_mems(list);
        }
        if let Some(count) = self.pids_limit {
            spec = spec.pids_limit(count);
        }
        Ok(spec)
    }

    /// What a running container's bounds become.
    ///
    /// # Errors
    /// InvalidArgument as [`Self::apply`], for values out of range, and when nothing is given.
    pub(crate) fn resources(&self) -> Result<LinuxResources> {
        let mut bare = Spec::default();
        bare.set_linux(None);
        let spec = self.apply(SpecBuilder::from_spec(bare))?.build()?;
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
        resources.ok_or_else(|| Error::invalid_argument("nothing to update: give a limit"))
    }
}
