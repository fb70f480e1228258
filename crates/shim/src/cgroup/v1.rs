//! Version 1 files as `io.containerd.cgroups.v1.Metrics`.

use std::path::Path;

use gantry_api::io::containerd::cgroups::v1::{
    BlkIoEntry, BlkIoStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, Throttle,
};

use super::Cgroup;
use super::files::{Table, number, text};

/// `USER_HZ`: the unit of `cpuacct.stat`, in nanoseconds; fixed at 100 a second on Linux.
const TICK_NS: u64 = 10_000_000;

/// Everything the hierarchies of the container tell.
pub(super) fn metrics(cgroup: &Cgroup) -> Metrics {
    Metrics {
        hugetlb: cgroup.directory("hugetlb").map(hugetlb).unwrap_or_default(),
        pids: cgroup.directory("pids").map(|d| PidsStat {
            current: number(d, "pids.current"),
            // Unlimited is zero here, by the message's own convention.
            limit: Some(number(d, "pids.max")).filter(|max| *max != u64::MAX).unwrap_or(0),
        }),
        cpu: Some(cpu(cgroup)),
        memory: cgroup.directory("memory").map(memory),
        blkio: cgroup.directory("blkio").map(blkio),
        memory_oom_control: cgroup.directory("memory").map(|d| {
            let table = Table::read(d, "memory.oom_control");
            MemoryOomControl {
                oom_kill_disable: table.get("oom_kill_disable"),
                under_oom: table.get("under_oom"),
                oom_kill: table.get("oom_kill"),
            }
        }),
        ..Metrics::default()
    }
}

fn cpu(cgroup: &Cgroup) -> CpuStat {
    let usage = cgroup.directory("cpuacct").map(|d| {
        let stat = Table::read(d, "cpuacct.stat");
        let per_cpu = text(d, "cpuacct.usage_percpu").unwrap_or_default();
        CpuUsage {
            total: number(d, "cpuacct.usage"),
            user: stat.get("user") * TICK_NS,
            kernel: stat.get("system") * TICK_NS,
            per_cpu: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
        }
    });
    let throttling = cgroup.directory("cpu").map(|d| {
        let stat = Table::read(d, "cpu.stat");
        Throttle {
            periods: stat.get("nr_periods"),
            throttled_periods: stat.get("nr_throttled"),
            throttled_time: stat.get("throttled_time"),
        }
    });
    CpuStat { usage, throttling }
}

fn memory(d: &Path) -> MemoryStat {
    let stat = Table::read(d, "memory.stat");
    let entry = |module: &str| {
        let file = |name: &str| number(d, &format!("memory.{module}{name}"));
        Some(MemoryEntry {
            usage: file("usage_in_bytes"),
            max: file("max_usage_in_bytes"),
            failcnt: file("failcnt"),
            limit: file("limit_in_bytes"),
        })
    };
    let get = |key: &str| stat.get(key);
    MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
    }
}

fn blkio(d: &Path) -> BlkIoStat {
    // The first scheduler that keeps a file is the one that counts.
    let read = |files: &[&str]| {
        files.iter().filter_map(|file| text(d, file)).map(|t| entries(&t)).find(|e| !e.is_empty())
    };
    let bytes = [
        "blkio.io_service_bytes_recursive",
        "blkio.bfq.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes",
    ];
    let operations = [
        "blkio.io_serviced_recursive",
        "blkio.bfq.io_serviced_recursive",
        "blkio.throttle.io_serviced_recursive",
        "blkio.throttle.io_serviced",
    ];
    BlkIoStat {
        io_service_bytes_recursive: read(&bytes).unwrap_or_default(),
        io_serviced_recursive: read(&operations).unwrap_or_default(),
        io_queued_recursive: read(&["blkio.io_queued_recursive"]).unwrap_or_default(),
        io_service_time_recursive: read(&["blkio.io_service_time_recursive"]).unwrap_or_default(),
        io_wait_time_recursive: read(&["blkio.io_wait_time_recursive"]).unwrap_or_default(),
        io_merged_recursive: read(&["blkio.io_merged_recursive"]).unwrap_or_default(),
        io_time_recursive: read(&["blkio.time_recursive"]).unwrap_or_default(),
        sectors_recursive: read(&["blkio.sectors_recursive"]).unwrap_or_default(),
    }
}

/// Lines `8:0 Read 4096` or `8:0 4096`; the total at the end has no device and is left out.
fn entries(text: &str) -> Vec<BlkIoEntry> {
    text.lines().filter_map(entry).collect()
}

fn entry(line: &str) -> Option<BlkIoEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let (op, value) = match (fields.next()?, fields.next()) {
        (op, Some(value)) => (op, value),
        (value, None) => ("", value),
    };
    Some(BlkIoEntry {
        op: op.to_owned(),
        device: String::new(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        value: value.parse().ok()?,
    })
}

fn hugetlb(d: &Path) -> Vec<HugetlbStat> {
    let Ok(files) = std::fs::read_dir(d) else { return Vec::new() };
    let sizes = files.flatten().filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".limit_in_bytes")?;
        (!size.ends_with(".rsvd")).then(|| size.to_owned())
    });
    let file = |size: &str, what: &str| number(d, &format!("hugetlb.{size}.{what}"));
    sizes
        .map(|size| HugetlbStat {
            usage: file(&size, "usage_in_bytes"),
            max: file(&size, "max_usage_in_bytes"),
            failcnt: file(&size, "failcnt"),
            pagesize: size,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lines() {
        let found = entries("8:0 Read 4096\n8:0 Write 1\n8:16 7\nTotal 4097\n");
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].major, found[0].minor, found[0].value), (8, 0, 4096));
        assert_eq!(found[0].op, "Read");
        assert_eq!((found[2].op.as_str(), found[2].value), ("", 7));
    }
}
