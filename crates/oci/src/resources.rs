//! Limits of the container's cgroup.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use crate::builder::SpecBuilder;

/// CFS period in microseconds that [`SpecBuilder::cpus`] divides: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

impl SpecBuilder {
    /// Memory limit in bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        let Ok(limit) = i64::try_from(bytes) else {
            return self.fail(format!("memory limit {bytes}: out of range"));
        };
        let memory = self.resources().memory_mut().get_or_insert_with(LinuxMemory::default);
        memory.set_limit(Some(limit));
        self
    }

    /// CPU time as a number of processors, such as 0.5 or 2.
    #[must_use]
    pub fn cpus(self, count: f64) -> Self {
        let quota = count * CPU_PERIOD_US as f64;
        // The kernel takes no quota under a millisecond.
        if !quota.is_finite() || !(1000.0..=1e15).contains(&quota) {
            return self.fail(format!("cpus {count}: out of range"));
        }
        self.cpu_quota(quota.round() as i64, CPU_PERIOD_US)
    }

    /// CFS quota per period, both in microseconds. A period of 0 keeps the kernel's.
    #[must_use]
    pub fn cpu_quota(mut self, quota_us: i64, period_us: u64) -> Self {
        let cpu = self.cpu();
        cpu.set_quota(Some(quota_us));
        if period_us > 0 {
            cpu.set_period(Some(period_us));
        }
        self
    }

    /// CPU weight against other cgroups; 1024 is the default weight.
    #[must_use]
    pub fn cpu_shares(mut self, shares: u64) -> Self {
        self.cpu().set_shares(Some(shares));
        self
    }

    /// Processors the container may use, such as `0-3,7`.
    #[must_use]
    pub fn cpuset_cpus(mut self, list: impl Into<String>) -> Self {
        self.cpu().set_cpus(Some(list.into()));
        self
    }

    /// Memory nodes the container may use, such as `0-1`.
    #[must_use]
    pub fn cpuset_mems(mut self, list: impl Into<String>) -> Self {
        self.cpu().set_mems(Some(list.into()));
        self
    }

    /// Most processes at a time.
    #[must_use]
    pub fn pids_limit(mut self, count: i64) -> Self {
        let mut pids = LinuxPids::default();
        pids.set_limit(count);
        self.resources().set_pids(Some(pids));
        self
    }

    pub(crate) fn resources(&mut self) -> &mut LinuxResources {
        self.linux().resources_mut().get_or_insert_default()
    }

    fn cpu(&mut self) -> &mut LinuxCpu {
        self.resources().cpu_mut().get_or_insert_with(LinuxCpu::default)
    }
}
