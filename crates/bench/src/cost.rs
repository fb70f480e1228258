//! What a piece of work cost: time, and what its processes used.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_testkit::Daemon;

use crate::report::{Report, median};

/// Clock ticks per second in `/proc/<pid>/stat`: the kernel shows it in these on every machine.
const TICKS_PER_SEC: u64 = 100;

/// Cost of one run of a client against a daemon that was started for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Of the client's command.
    pub(crate) wall: Duration,
    /// Processor time of daemon, client and their children.
    pub(crate) cpu: Duration,
    /// Bytes they wrote to disk.
    pub(crate) written: u64,
    /// Bytes that are on disk in the end and were not before.
    pub(crate) kept: u64,
    /// Greatest RSS of the daemon, KiB.
    pub(crate) peak: u64,
}

impl Cost {
    /// Runs `prepare` and then `work`, which is timed, on `daemon`; ends the daemon, so that all it
    /// used is known.
    pub(crate) fn of<P>(
        daemon: Daemon,
        prepare: impl FnOnce(&Daemon) -> P,
        work: impl FnOnce(&Daemon, P),
    ) -> Self {
        let prepared = prepare(&daemon);
        let kept = on_disk(&daemon.root());
        let (cpu, written) = (cpu_of(daemon.pid()), written_by(daemon.pid()));
        let before = (children_cpu(), children_written());
        let begin = Instant::now();
        work(&daemon, prepared);
        let wall = begin.elapsed();
        let peak = peak_of(daemon.pid());
        let kept = on_disk(&daemon.root()).saturating_sub(kept);
        drop(daemon);
        Self {
            wall,
            cpu: children_cpu().saturating_sub(before.0).saturating_sub(cpu),
            written: children_written().saturating_sub(before.1).saturating_sub(written),
            kept,
            peak,
        }
    }
}

/// Bytes that the files below `dir` take on disk.
pub(crate) fn on_disk(dir: &Path) -> u64 {
    let mut bytes = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            // Files with several names are few in these images.
            bytes += meta.blocks() * 512 / if meta.is_dir() { 1 } else { meta.nlink().max(1) };
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    bytes
}

/// Adds the medians of both sides' costs.
pub(crate) fn report(report: &mut Report, what: &str, sides: &[Vec<Cost>; 2]) {
    let of = |pick: fn(&Cost) -> u64| {
        sides.each_ref().map(|side| median(side.iter().map(pick).collect()))
    };
    let times = |pick: fn(&Cost) -> Duration| {
        sides.each_ref().map(|side| side.iter().map(pick).collect::<Vec<_>>())
    };
    report.times(&format!("{what}: time"), times(|cost| cost.wall));
    report.times(&format!("{what}: CPU"), times(|cost| cost.cpu));
    report.sizes(&format!("{what}: written"), of(|cost| cost.written / 1024));
    let kept = of(|cost| cost.kept);
    if kept.iter().all(|kept| *kept > 0) {
        #[allow(clippy::cast_precision_loss, reason = "a ratio shown with two digits")]
        let each = of(|cost| cost.written).map(|b| b as f64);
        let share = [0, 1].map(|n| each[n] / kept[n] as f64);
        report.factors(&format!("{what}: written per byte kept"), share);
    }
    report.sizes(&format!("{what}: peak RSS of the daemon"), of(|cost| cost.peak));
}

/// Processor time of this process's children that were waited for, and theirs.
fn children_cpu() -> Duration {
    stat_ticks("self", 15..17)
}

/// Processor time of a running process and of its children that were waited for.
fn cpu_of(pid: u32) -> Duration {
    stat_ticks(&pid.to_string(), 13..17)
}

/// Sum of fields of `/proc/<pid>/stat`, counted from 0.
fn stat_ticks(pid: &str, fields: std::ops::Range<usize>) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field, the name in parentheses, may have spaces in it.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = rest
        .split_whitespace()
        .enumerate()
        .filter(|(n, _)| fields.contains(&(n + 2)))
        .filter_map(|(_, field)| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SEC)
}

/// Bytes written by this process, which writes little, and its children that were waited for.
pub(crate) fn children_written() -> u64 {
    field("/proc/self/io", "write_bytes:")
}

fn written_by(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/io"), "write_bytes:")
}

fn peak_of(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmHWM:")
}

fn field(path: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
