//! Version 2 files as `io.containerd.cgroups.v2.Metrics`.

use std::path::Path;

use gantry_api::io::containerd::cgroups::v2::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData,
    PsiStats,
};

use super::files::{Table, number, parse, text};

/// Everything the cgroup tells.
pub(super) fn metrics(d: &Path) -> Metrics {
    let events = Table::read(d, "memory.events");
    Metrics {
        pids: Some(PidsStat { current: number(d, "pids.current"), limit: number(d, "pids.max") }),
        cpu: Some(cpu(d)),
        memory: Some(memory(d)),
        io: Some(IoStat {
            usage: text(d, "io.stat").unwrap_or_default().lines().filter_map(io).collect(),
            psi: pressure(d, "io.pressure"),
        }),
        hugetlb: hugetlb(d),
        memory_events: Some(MemoryEvents {
            low: events.get("low"),
            high: events.get("high"),
            max: events.get("max"),
            oom: events.get("oom"),
            oom_kill: events.get("oom_kill"),
            oom_group_kill: events.get("oom_group_kill"),
        }),
        ..Metrics::default()
    }
}

fn cpu(d: &Path) -> CpuStat {
    let stat = Table::read(d, "cpu.stat");
    CpuStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi: pressure(d, "cpu.pressure"),
    }
}

fn memory(d: &Path) -> MemoryStat {
    let stat = Table::read(d, "memory.stat");
    let get = |key: &str| stat.get(key);
    MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_refault: get("workingset_refault")
            + get("workingset_refault_anon")
            + get("workingset_refault_file"),
        workingset_activate: get("workingset_activate")
            + get("workingset_activate_anon")
            + get("workingset_activate_file"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: number(d, "memory.current"),
        usage_limit: number(d, "memory.max"),
        max_usage: number(d, "memory.peak"),
        swap_usage: number(d, "memory.swap.current"),
        swap_limit: number(d, "memory.swap.max"),
        swap_max_usage: number(d, "memory.swap.peak"),
        psi: pressure(d, "memory.pressure"),
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(line: &str) -> Option<IoEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let mut entry =
        IoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoEntry::default() };
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        let field = match key {
            "rbytes" => &mut entry.rbytes,
            "wbytes" => &mut entry.wbytes,
            "rios" => &mut entry.rios,
            "wios" => &mut entry.wios,
            _ => continue,
        };
        *field = parse(value);
    }
    Some(entry)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn pressure(d: &Path, file: &str) -> Option<PsiStats> {
    let text = text(d, file)?;
    let line = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let field = |key: &str| {
            line.split_whitespace()
                .filter_map(|field| field.split_once('='))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value)
        };
        let average = |key: &str| field(key).and_then(|v| v.parse().ok()).unwrap_or(0.0);
        Some(PsiData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: field("total").map_or(0, parse),
        })
    };
    Some(PsiStats { some: line("some "), full: line("full ") })
}

fn hugetlb(d: &Path) -> Vec<HugeTlbStat> {
    let Ok(files) = std::fs::read_dir(d) else { return Vec::new() };
    let sizes = files.flatten().filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.ends_with(".rsvd")).then(|| size.to_owned())
    });
    sizes
        .map(|size| HugeTlbStat {
            current: number(d, &format!("hugetlb.{size}.current")),
            max: number(d, &format!("hugetlb.{size}.max")),
            failcnt: Table::read(d, &format!("hugetlb.{size}.events")).get("max"),
            pagesize: size,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_files_becomes_one_message() {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("ok");
        put("memory.current", "4096\n");
        put("memory.max", "max\n");
        put("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n");
        put("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n");
        put("hugetlb.2MB.current", "7\n");
        let metrics = metrics(dir.path());
        let memory = metrics.memory.expect("memory");
        assert_eq!((memory.usage, memory.usage_limit), (4096, u64::MAX));
        let io = metrics.io.expect("io").usage;
        assert_eq!((io[0].major, io[0].rbytes, io[0].wios), (8, 1, 4));
        let psi = metrics.cpu.expect("cpu").psi.expect("pressure").some.expect("some");
        assert_eq!((psi.avg10, psi.total), (1.5, 9));
        assert_eq!((metrics.hugetlb[0].current, metrics.hugetlb[0].pagesize.as_str()), (7, "2MB"));
    }
}
