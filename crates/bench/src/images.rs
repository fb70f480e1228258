//! Moving images: pull, push, import and export, each daemon with the client it is used with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gantry_testkit::{Compression, Ctr, Daemon, DaemonKind, Image, ImageBuilder, Layer, Registry};

use crate::cost::{self, Cost};
use crate::report::Report;

/// Rounds per image.
const ROUNDS: usize = 3;

/// Longest a client may take: a pull of gigabytes on a busy machine.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(300);

/// Directories of this machine that the layers of the big image are made of: programs, many
/// small files, and libraries, over a gigabyte together.
const BIG_LAYERS: [&str; 6] = ["bin", "sbin", "share", "lib/python3", "lib/gcc", "lib/git-core"];

const KINDS: [DaemonKind; 2] = [DaemonKind::Containerd, DaemonKind::Gantryd];

pub(crate) fn run(report: &mut Report) {
    let registry = Registry::start();
    let gzip = from_usr(Compression::Gzip);
    moved(&registry, report, "six layers of /usr, gzip", &gzip, true);
    drop(gzip);
    let zstd = from_usr(Compression::Zstd);
    moved(&registry, report, "six layers of /usr, zstd", &zstd, false);
    drop(zstd);
    let small = Image::builder().layers(40).build();
    moved(&registry, report, "40 small layers, gzip", &small, false);
    let small = Image::builder().layers(40).compression(Compression::Zstd).build();
    moved(&registry, report, "40 small layers, zstd", &small, false);
}

/// Measures the ways of `image`: the pull alone, or `all`.
fn moved(registry: &Registry, report: &mut Report, what: &str, image: &Image, all: bool) {
    let tag = what.replace([' ', ',', '/'], "-");
    let reference = image.push(registry, &format!("bench:{tag}"));
    let pull = |kind| {
        Cost::of(
            start(kind),
            |_| (),
            |daemon, ()| {
                client(daemon).ok(["images", "pull", "--plain-http", &reference]);
            },
        )
    };
    compare(report, &format!("pull {what}"), pull);
    if !all {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let archive = dir.path().join("image.tar");
    image.write_oci_tar(&archive, &reference);
    let archive = archive.to_string_lossy().into_owned();
    compare(report, &format!("import {what}"), |kind| {
        Cost::of(
            start(kind),
            |_| (),
            |daemon, ()| {
                client(daemon).ok(["images", "import", &archive]);
            },
        )
    });
    let imported = |daemon: &Daemon| -> Ctr {
        let client = client(daemon);
        client.ok(["images", "import", &archive]);
        client
    };
    let out: PathBuf = dir.path().join("exported.tar");
    let out = out.to_string_lossy().into_owned();
    compare(report, &format!("export {what}"), |kind| {
        Cost::of(start(kind), imported, |_, client| {
            client.ok(["images", "export", &out, &reference]);
        })
    });
    compare(report, &format!("push {what}"), |kind| {
        let target = Registry::start();
        let cost = Cost::of(start(kind), imported, |_, client| {
            let to = format!("{}/pushed:1", target.host());
            client.ok(["images", "push", "--plain-http", &to, &reference]);
        });
        drop(target);
        cost
    });
}

/// Runs `work` on both kinds of daemon in turn.
fn compare(report: &mut Report, what: &str, work: impl Fn(DaemonKind) -> Cost) {
    let mut sides = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (side, kind) in sides.iter_mut().zip(KINDS) {
            side.push(work(kind));
        }
    }
    cost::report(report, what, &sides);
}

fn start(kind: DaemonKind) -> Daemon {
    match kind {
        DaemonKind::Containerd => Daemon::containerd().start(),
        DaemonKind::Gantryd => Daemon::gantryd().start(),
    }
}

/// The client that users of this daemon have.
fn client(daemon: &Daemon) -> Ctr {
    let client = match daemon.kind() {
        DaemonKind::Containerd => daemon.ctr(),
        DaemonKind::Gantryd => daemon.gantry(),
    };
    client.with_timeout(CLIENT_TIMEOUT)
}

/// Six layers of files of this machine.
fn from_usr(compression: Compression) -> Image {
    let layers = BIG_LAYERS.iter().map(|part| layer_of(&Path::new("/usr").join(part)));
    let builder: ImageBuilder = Image::builder().only_layers(layers).compression(compression);
    builder.build()
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
