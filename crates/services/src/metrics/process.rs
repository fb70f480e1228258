//! The daemon's own process.

use std::fs;

use super::text::{Kind, Text};

/// Adds what `/proc` says of this process; what cannot be read is left out.
pub(super) fn add(text: &mut Text) {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as f64;
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        // After the name, which may hold anything: fields 3 and on.
        let fields: Vec<f64> = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').map(|f| f.parse().unwrap_or(0.0)).collect())
            .unwrap_or_default();
        let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0.0);
        let cpu = (field(14) + field(15)) / ticks;
        text.add("process_cpu_seconds_total", Kind::Counter, &[], cpu);
        text.add("process_virtual_memory_bytes", Kind::Gauge, &[], field(23));
        text.add("process_resident_memory_bytes", Kind::Gauge, &[], field(24) * page);
        text.add("process_threads", Kind::Gauge, &[], field(20));
        if let Some(boot) = boot_time() {
            let started = boot + field(22) / ticks;
            text.add("process_start_time_seconds", Kind::Gauge, &[], started);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        text.add("process_open_fds", Kind::Gauge, &[], open.count() as f64);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        text.add("process_max_fds", Kind::Gauge, &[], limit as f64);
    }
}

/// When the machine started, in seconds since 1970.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
