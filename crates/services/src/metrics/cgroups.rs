//! The metrics of tasks, of either cgroup version, under containerd's names.

use gantry_api::Payload as _;
use gantry_api::io::containerd::cgroups::{v1, v2};
use prost_types::Any;

use super::text::{Kind, Text};

type Labels<'a> = [(&'a str, &'a str); 2];

/// Adds what a shim tells of a task.
pub(super) fn add(text: &mut Text, labels: &Labels<'_>, stats: &Any) {
    if let Ok(Some(metrics)) = stats.unpack::<v1::Metrics>() {
        version_1(text, labels, &metrics);
    } else if let Ok(Some(metrics)) = stats.unpack::<v2::Metrics>() {
        version_2(text, labels, &metrics);
    }
}

/// Adds numbers of one task by name.
fn gauges(text: &mut Text, labels: &Labels<'_>, numbers: &[(&str, u64)]) {
    for (name, value) in numbers {
        text.add(&format!("container_{name}"), Kind::Gauge, labels, *value as f64);
    }
}

/// Adds a number with one more label.
fn labelled(text: &mut Text, labels: &Labels<'_>, name: &str, more: &[(&str, &str)], value: u64) {
    let all: Vec<(&str, &str)> = labels.iter().chain(more).copied().collect();
    text.add(&format!("container_{name}"), Kind::Gauge, &all, value as f64);
}

fn version_1(text: &mut Text, labels: &Labels<'_>, metrics: &v1::Metrics) {
    if let Some(pids) = &metrics.pids {
        gauges(text, labels, &[("pids_current", pids.current), ("pids_limit", pids.limit)]);
    }
    if let Some(usage) = metrics.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref()) {
        let numbers = [
            ("cpu_total_nanoseconds", usage.total),
            ("cpu_kernel_nanoseconds", usage.kernel),
            ("cpu_user_nanoseconds", usage.user),
        ];
        gauges(text, labels, &numbers);
        for (n, value) in usage.per_cpu.iter().enumerate() {
            labelled(text, labels, "per_cpu_nanoseconds", &[("cpu", &n.to_string())], *value);
        }
    }
    if let Some(throttling) = metrics.cpu.as_ref().and_then(|cpu| cpu.throttling.as_ref()) {
        let numbers = [
            ("cpu_throttle_periods_total", throttling.periods),
            ("cpu_throttled_periods_total", throttling.throttled_periods),
            ("cpu_throttled_time_nanoseconds", throttling.throttled_time),
        ];
        gauges(text, labels, &numbers);
    }
    if let Some(memory) = &metrics.memory {
        memory_1(text, labels, memory);
    }
    if let Some(oom) = &metrics.memory_oom_control {
        gauges(text, labels, &[("memory_oom_total", oom.oom_kill)]);
    }
    for entry in metrics.blkio.iter().flat_map(|io| &io.io_service_bytes_recursive) {
        blkio(text, labels, "blkio_io_service_bytes_recursive_bytes", entry);
    }
    for entry in metrics.blkio.iter().flat_map(|io| &io.io_serviced_recursive) {
        blkio(text, labels, "blkio_io_serviced_recursive_total", entry);
    }
    for page in &metrics.hugetlb {
        let more = [("page", page.pagesize.as_str())];
        labelled(text, labels, "hugetlb_usage_bytes", &more, page.usage);
        labelled(text, labels, "hugetlb_max_bytes", &more, page.max);
        labelled(text, labels, "hugetlb_failcnt_total", &more, page.failcnt);
    }
}

fn memory_1(text: &mut Text, labels: &Labels<'_>, memory: &v1::MemoryStat) {
    let numbers = [
        ("memory_cache_bytes", memory.cache),
        ("memory_rss_bytes", memory.rss),
        ("memory_rss_huge_bytes", memory.rss_huge),
        ("memory_mapped_file_bytes", memory.mapped_file),
        ("memory_dirty_bytes", memory.dirty),
        ("memory_writeback_bytes", memory.writeback),
        ("memory_pgpgin_bytes", memory.pg_pg_in),
        ("memory_pgpgout_bytes", memory.pg_pg_out),
        ("memory_pgfault_bytes", memory.pg_fault),
        ("memory_pgmajfault_bytes", memory.pg_maj_fault),
        ("memory_inactive_anon_bytes", memory.inactive_anon),
        ("memory_active_anon_bytes", memory.active_anon),
        ("memory_inactive_file_bytes", memory.inactive_file),
        ("memory_active_file_bytes", memory.active_file),
        ("memory_unevictable_bytes", memory.unevictable),
        ("memory_hierarchical_memory_limit_bytes", memory.hierarchical_memory_limit),
        ("memory_hierarchical_memsw_limit_bytes", memory.hierarchical_swap_limit),
        ("memory_total_cache_bytes", memory.total_cache),
        ("memory_total_rss_bytes", memory.total_rss),
        ("memory_total_mapped_file_bytes", memory.total_mapped_file),
        ("memory_total_inactive_file_bytes", memory.total_inactive_file),
        ("memory_total_active_file_bytes", memory.total_active_file),
    ];
    gauges(text, labels, &numbers);
    let entries = [
        ("usage", &memory.usage),
        ("swap", &memory.swap),
        ("kernel", &memory.kernel),
        ("kerneltcp", &memory.kernel_tcp),
    ];
    for (name, entry) in entries {
        let Some(entry) = entry else { continue };
        let named = |what: &str| format!("memory_{name}_{what}");
        let numbers = [
            (named("usage_bytes"), entry.usage),
            (named("max_bytes"), entry.max),
            (named("limit_bytes"), entry.limit),
            (named("failcnt_total"), entry.failcnt),
        ];
        for (name, value) in numbers {
            gauges(text, labels, &[(name.as_str(), value)]);
        }
    }
}

fn blkio(text: &mut Text, labels: &Labels<'_>, name: &str, entry: &v1::BlkIoEntry) {
    let (major, minor) = (entry.major.to_string(), entry.minor.to_string());
    let more = [
        ("op", entry.op.as_str()),
        ("device", entry.device.as_str()),
        ("major", major.as_str()),
        ("minor", minor.as_str()),
    ];
    labelled(text, labels, name, &more, entry.value);
}

fn version_2(text: &mut Text, labels: &Labels<'_>, metrics: &v2::Metrics) {
    if let Some(pids) = &metrics.pids {
        gauges(text, labels, &[("pids_current", pids.current), ("pids_limit", pids.limit)]);
    }
    if let Some(cpu) = &metrics.cpu {
        let numbers = [
            ("cpu_usage_usec_microseconds", cpu.usage_usec),
            ("cpu_user_usec_microseconds", cpu.user_usec),
            ("cpu_system_usec_microseconds", cpu.system_usec),
            ("cpu_nr_periods", cpu.nr_periods),
            ("cpu_nr_throttled", cpu.nr_throttled),
            ("cpu_throttled_usec_microseconds", cpu.throttled_usec),
        ];
        gauges(text, labels, &numbers);
    }
    if let Some(memory) = &metrics.memory {
        memory_2(text, labels, memory);
    }
    if let Some(events) = &metrics.memory_events {
        gauges(text, labels, &[("memory_oom_total", events.oom_kill)]);
    }
    for entry in metrics.io.iter().flat_map(|io| &io.usage) {
        let (major, minor) = (entry.major.to_string(), entry.minor.to_string());
        let more = [("major", major.as_str()), ("minor", minor.as_str())];
        labelled(text, labels, "io_rbytes_bytes", &more, entry.rbytes);
        labelled(text, labels, "io_wbytes_bytes", &more, entry.wbytes);
        labelled(text, labels, "io_rios_total", &more, entry.rios);
        labelled(text, labels, "io_wios_total", &more, entry.wios);
    }
}

fn memory_2(text: &mut Text, labels: &Labels<'_>, memory: &v2::MemoryStat) {
    let numbers = [
        ("memory_usage_bytes", memory.usage),
        ("memory_usage_limit_bytes", memory.usage_limit),
        ("memory_swap_usage_bytes", memory.swap_usage),
        ("memory_swap_limit_bytes", memory.swap_limit),
        ("memory_anon_bytes", memory.anon),
        ("memory_file_bytes", memory.file),
        ("memory_kernel_stack_bytes", memory.kernel_stack),
        ("memory_slab_bytes", memory.slab),
        ("memory_sock_bytes", memory.sock),
        ("memory_shmem_bytes", memory.shmem),
        ("memory_file_mapped_bytes", memory.file_mapped),
        ("memory_file_dirty_bytes", memory.file_dirty),
        ("memory_file_writeback_bytes", memory.file_writeback),
        ("memory_anon_thp_bytes", memory.anon_thp),
        ("memory_inactive_anon_bytes", memory.inactive_anon),
        ("memory_active_anon_bytes", memory.active_anon),
        ("memory_inactive_file_bytes", memory.inactive_file),
        ("memory_active_file_bytes", memory.active_file),
        ("memory_unevictable_bytes", memory.unevictable),
        ("memory_slab_reclaimable_bytes", memory.slab_reclaimable),
        ("memory_slab_unreclaimable_bytes", memory.slab_unreclaimable),
        ("memory_pgfault_bytes", memory.pgfault),
        ("memory_pgmajfault_bytes", memory.pgmajfault),
        ("memory_workingset_refault_bytes", memory.workingset_refault),
        ("memory_workingset_activate_bytes", memory.workingset_activate),
        ("memory_workingset_nodereclaim_bytes", memory.workingset_nodereclaim),
        ("memory_pgrefill_bytes", memory.pgrefill),
        ("memory_pgscan_bytes", memory.pgscan),
        ("memory_pgsteal_bytes", memory.pgsteal),
        ("memory_pgactivate_bytes", memory.pgactivate),
        ("memory_pgdeactivate_bytes", memory.pgdeactivate),
        ("memory_pglazyfree_bytes", memory.pglazyfree),
        ("memory_pglazyfreed_bytes", memory.pglazyfreed),
        ("memory_thp_fault_alloc_bytes", memory.thp_fault_alloc),
        ("memory_thp_collapse_alloc_bytes", memory.thp_collapse_alloc),
    ];
    gauges(text, labels, &numbers);
}
