//! Memory of daemons and shims at rest, from `/proc/<pid>/smaps_rollup`.

use std::time::Duration;

use gantry_errdefs::Result;

use crate::Pair;
use crate::life;
use crate::report::Report;

/// Idle containers per daemon; `GANTRY_BENCH_IDLE`.
const IDLE: usize = 10;

/// How long a daemon is left alone before its memory is read: both give memory back with time.
const REST: Duration = Duration::from_secs(12);

/// Container records made and deleted, and how often memory is read meanwhile.
const SOAK_PAIRS: usize = 500_000;
const SOAK_STEPS: usize = 10;

/// Memory of daemons that have done nothing since their start but import an image.
pub(crate) async fn run_idle(pair: &Pair, report: &mut Report) {
    rest().await;
    report.sizes("daemon RSS, idle", daemons(pair));
}

/// Memory over a million operations, on ours alone. `GANTRY_SOAK_PAIRS` sets another number.
pub(crate) async fn run_soak(pair: &Pair) -> Result<()> {
    let pairs = std::env::var("GANTRY_SOAK_PAIRS").ok().and_then(|n| n.parse().ok());
    let step = pairs.unwrap_or(SOAK_PAIRS) / SOAK_STEPS;
    let (_, client) = &pair.daemons[1];
    for n in 1..=SOAK_STEPS {
        crate::records::pairs(client, step, 16).await?;
        let rss = daemons(pair)[1];
        println!("soak: {} operations, RSS {rss} KiB", 2 * n * step);
    }
    rest().await;
    println!("soak: at rest, RSS {} KiB", daemons(pair)[1]);
    Ok(())
}

/// Execs in one container, whose shim is to be as small afterwards; `GANTRY_BENCH_MEMORY_EXECS`.
const EXECS: usize = 200;
/// Execs before, so that what is made once is there.
const WARM_UP: usize = 50;

/// A shim gives memory back once nobody has called it for a second.
const SHIM_REST: Duration = Duration::from_secs(3);

pub(crate) async fn run(pair: &Pair, report: &mut Report) -> Result<()> {
    let idle = life::count("GANTRY_BENCH_IDLE", IDLE);
    for (_, client) in &pair.daemons {
        for n in 0..idle {
            let id = format!("idle-{n}");
            life::create(client, &id, &["sleep", "1000"]).await?;
            life::start(client, &id).await?;
        }
    }
    tokio::time::sleep(REST).await;
    report.sizes("daemon RSS", daemons(pair));
    let total = |side: usize, key: &str| -> (u64, u64) {
        let shims = shims(&pair.daemons[side].0);
        let total = shims.iter().map(|pid| rollup(*pid, key)).sum();
        (total, u64::try_from(shims.len().max(1)).unwrap_or(1))
    };
    for (what, key) in [("RSS", "Rss:"), ("PSS", "Pss:"), ("private dirty", "Private_Dirty:")] {
        let sides = [0, 1].map(|side| total(side, key));
        report.sizes(&format!("shim {what}, mean of {idle}"), sides.map(|(all, n)| all / n));
    }
    report.sizes(&format!("PSS of {idle} shims"), [0, 1].map(|side| total(side, "Pss:").0));
    for (_, client) in &pair.daemons {
        for n in 1..idle {
            life::kill_and_remove(client, &format!("idle-{n}")).await?;
        }
    }
    after_execs(pair, report).await?;
    for (_, client) in &pair.daemons {
        life::kill_and_remove(client, "idle-0").await?;
    }
    Ok(())
}

/// How much a shim grows by execs; its container is the only one left.
async fn after_execs(pair: &Pair, report: &mut Report) -> Result<()> {
    let execs = life::count("GANTRY_BENCH_MEMORY_EXECS", EXECS);
    let (mut before, mut after) = ([0; 2], [0; 2]);
    for (side, (daemon, client)) in pair.daemons.iter().enumerate() {
        let private = || shims(daemon).iter().map(|pid| rollup(*pid, "Private_Dirty:")).sum();
        for n in 0..WARM_UP {
            life::exec(client, "idle-0", &format!("warm-{n}")).await?;
        }
        tokio::time::sleep(SHIM_REST).await;
        before[side] = private();
        for n in 0..execs {
            life::exec(client, "idle-0", &format!("exec-{n}")).await?;
        }
        tokio::time::sleep(SHIM_REST).await;
        after[side] = private();
    }
    report.sizes("shim private dirty before execs", before);
    report.sizes(&format!("shim private dirty after {execs} execs"), after);
    Ok(())
}

/// Leaves the daemons alone for a while.
pub(crate) async fn rest() {
    tokio::time::sleep(REST).await;
}

/// RSS of both daemons, in KiB.
pub(crate) fn daemons(pair: &Pair) -> [u64; 2] {
    [0, 1].map(|side| rollup(pair.daemons[side].0.pid(), "Rss:"))
}

/// Processes that serve as shims of a daemon: their command line names its socket.
pub(crate) fn shims(daemon: &gantry_testkit::Daemon) -> Vec<u32> {
    let address = daemon.address().to_string_lossy().into_owned();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&raw);
            command.contains("containerd-shim") && command.contains(&address)
        })
        .collect()
}

pub(crate) fn rollup(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
