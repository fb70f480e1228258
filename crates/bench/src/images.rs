//! Pulling from a local registry, each daemon with the client it is used with.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_testkit::{Compression, Daemon, DaemonKind, Image, ImageBuilder, Layer, Registry};

use crate::Pair;
use crate::report::Report;

/// Rounds per image.
const ROUNDS: usize = 3;

pub(crate) fn run(_pair: &Pair, report: &mut Report) {
    let registry = Registry::start();
    let big = from_usr().compression(Compression::Gzip).build();
    let small = Image::builder().layers(40).build();
    for (what, image) in
        [("pull: six layers of /usr, gzip", &big), ("pull: 40 small layers, gzip", &small)]
    {
        let reference = image.push(&registry, &format!("bench:{}", image.diff_ids().len()));
        let mut sides = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            sides[0].push(pull(DaemonKind::Containerd, &reference));
            sides[1].push(pull(DaemonKind::Gantryd, &reference));
        }
        report.times(what, sides);
    }
}

/// Six layers of files of this machine, some hundred MiB.
fn from_usr() -> ImageBuilder {
    let parts = ["bin", "sbin", "share/doc", "lib/python3", "lib/gcc", "lib/git-core"];
    let layers = parts.iter().map(|part| layer_of(&Path::new("/usr").join(part)));
    Image::builder().only_layers(layers)
}

fn layer_of(dir: &Path) -> Layer {
    let mut layer = Layer::new();
    let list = Command::new("find").arg(dir).args(["-type", "f"]).output();
    let list = list.map(|o| o.stdout).unwrap_or_default();
    for path in String::from_utf8_lossy(&list).lines() {
        if let Ok(data) = std::fs::read(path) {
            layer = layer.file(path.trim_start_matches('/'), 0o644, data);
        }
    }
    layer
}

/// One pull onto a fresh root.
fn pull(kind: DaemonKind, reference: &str) -> Duration {
    let (daemon, client) = match kind {
        DaemonKind::Containerd => {
            let daemon = Daemon::containerd().start();
            let client = daemon.ctr();
            (daemon, client)
        }
        DaemonKind::Gantryd => {
            let daemon = Daemon::gantryd().start();
            let client = daemon.gantry();
            (daemon, client)
        }
    };
    let client = client.with_timeout(Duration::from_secs(300));
    let begin = Instant::now();
    client.ok(["images", "pull", "--plain-http", reference]);
    let took = begin.elapsed();
    drop(client);
    drop(daemon);
    took
}
