//! Benches side by side with the installed containerd, as ratios of one run.
//!
//! `gantry-bench [idle|records|content|events|life|exec|restarts|phases|memory|images]...` (all when none is
//! named; `soak` and `endurance` run only when named). The same client code drives both daemons on
//! private roots; the order of the daemons alternates by round, so that what the machine does
//! besides hits both. `records` and `images` have parts of their own, see there. Numbers of one run are
//! comparable with each other and with nothing else.
//!
//! Roots are on disk (`/var/tmp`), those of `images` on a file system of their own for each round.
//! State is below `TMPDIR`, which `make bench` has on a tmpfs, as `/run` is.
//!
//! Build with `--release`; `GANTRY_BIN_DIR` names another directory of binaries to measure.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the report goes to standard output")]

mod client;
mod content;
mod cost;
mod endurance;
mod events;
mod fresh;
mod images;
mod life;
mod memory;
mod parts;
mod phases;
mod raw;
mod records;
mod report;
mod restarts;

use gantry_errdefs::Result;
use gantry_testkit::{Daemon, DaemonKind, Image};

use crate::client::Client;
use crate::report::Report;

/// Name of the image every bench runs.
pub(crate) const IMAGE: &str = "docker.io/library/busybox:1";

/// Where roots are, if not in `/var/tmp`. On ext4 a filesystem in which many files were removed a
/// minute ago makes new ones slowly, for whoever comes next; for images, see [`fresh`].
const DISK: &str = "GANTRY_BENCH_DISK";

/// The two daemons under measurement, with the image unpacked in each.
pub(crate) struct Pair {
    /// Debian's containerd and ours, in this order.
    pub(crate) daemons: [(Daemon, Client); 2],
    /// Their roots; gone after them.
    _roots: [tempfile::TempDir; 2],
}

impl Pair {
    async fn start() -> Result<Self> {
        let mut made = Vec::new();
        for kind in [DaemonKind::Containerd, DaemonKind::Gantryd] {
            let daemon = match kind {
                DaemonKind::Containerd => Daemon::containerd().config("[plugins]"),
                DaemonKind::Gantryd => Daemon::gantryd(),
            };
            let root = root()?;
            // As daemons run; those of tests log everything.
            let daemon = daemon.root(root.path()).arg("--log-level").arg("info");
            let (daemon, client) = with_image(daemon.start()).await?;
            made.push(((daemon, client), root));
        }
        let (second, second_root) = made.pop().expect("two daemons were made");
        let (first, first_root) = made.pop().expect("two daemons were made");
        Ok(Self { daemons: [first, second], _roots: [first_root, second_root] })
    }
}

/// A directory on disk, whatever `TMPDIR` is on.
pub(crate) fn root() -> Result<tempfile::TempDir> {
    let disk = std::env::var(DISK).unwrap_or_else(|_| "/var/tmp".to_owned());
    tempfile::tempdir_in(&disk).map_err(|err| gantry_errdefs::Error::io(&disk, err))
}

/// Imports the image; returns the daemon with a client of it.
pub(crate) async fn with_image(daemon: Daemon) -> Result<(Daemon, Client)> {
    let archive = daemon.dir().join("image.tar");
    let image = Image::busybox();
    image.write_oci_tar(&archive, IMAGE);
    daemon.ctr().ok(["images", "import", &archive.to_string_lossy()]);
    let client = Client::connect(&daemon, &image).await?;
    Ok((daemon, client))
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if !wanted.is_empty() && wanted.iter().all(|w| images::PARTS.has(w)) {
        let mut report = Report::new();
        images::run(&mut report, &wanted);
        print!("{report}");
        return Ok(());
    }
    let want = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| gantry_errdefs::Error::io("starting the bench's runtime", e))?;
    runtime.block_on(async {
        let pair = Pair::start().await?;
        let mut report = Report::new();
        if want("idle") {
            memory::run_idle(&pair, &mut report).await;
        }
        records::run(&pair, &mut report, &wanted).await?;
        if want("content") {
            content::run(&pair, &mut report).await?;
        }
        if want("events") {
            events::run(&pair, &mut report).await?;
        }
        if want("life") {
            life::run(&pair, &mut report).await?;
        }
        if want("exec") {
            life::run_execs(&pair, &mut report).await?;
        }
        if want("restarts") {
            restarts::run(&pair).await?;
        }
        if want("phases") {
            phases::run().await?;
        }
        if want("memory") {
            memory::run(&pair, &mut report).await?;
        }
        if wanted.iter().any(|w| w == "soak") {
            memory::run_soak(&pair).await?;
        }
        if wanted.iter().any(|w| w == "endurance") {
            endurance::run(&pair).await?;
        }
        images::run(&mut report, &wanted);
        print!("{report}");
        Ok(())
    })
}
