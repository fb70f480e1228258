//! Moving images: pull, push, import and export, each daemon with the client it is used with.
//!
//! `images` measures everything; `images-big-gzip`, `images-big-zstd`, `images-small-gzip`,
//! `images-small-zstd`, `images-layer` and `images-list` one part each. Making the big images takes
//! longer than moving them: with `GANTRY_BENCH_IMAGES` they are kept in that directory.

mod list;
mod material;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use gantry_core::Digest;
use gantry_testkit::{Compression, Ctr, Daemon, DaemonKind, Image, Registry};

use crate::cost::{self, Cost};
use crate::fresh::{self, FreshDisk};
use crate::parts::Parts;
use crate::report::Report;

/// Rounds per image.
const ROUNDS: usize = 3;

/// Longest a client may take: a pull of gigabytes on a busy machine.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(300);

/// Size of the layer that shows whether memory follows the size of a layer: some times what the
/// daemon may take.
const HUGE_LAYER_BYTES: usize = 1 << 30;

/// Largest image that is unpacked for comparison.
const PLAIN_BYTES_MAX: usize = 32 << 20;

const KINDS: [DaemonKind; 2] = [DaemonKind::Containerd, DaemonKind::Gantryd];

/// The parts.
pub(crate) const PARTS: Parts = Parts {
    bench: "images",
    names: &["big-gzip", "big-zstd", "small-gzip", "small-zstd", "layer", "list"],
};

/// Runs the parts that `wanted` names; all of them when it is empty or names `images`.
pub(crate) fn run(report: &mut Report, wanted: &[String]) {
    for part in PARTS.chosen(wanted) {
        let compression = match part.ends_with("zstd") {
            true => Compression::Zstd,
            false => Compression::Gzip,
        };
        match part {
            "list" => list::run(report),
            "layer" => {
                let image = material::kept("layer", || {
                    Image::builder().big_layer(HUGE_LAYER_BYTES, 7).build()
                });
                moved(report, "one layer of 1 GiB", &image, false);
            }
            _ if part.starts_with("big") => {
                let image = material::kept(part, || material::from_usr(compression));
                moved(report, &format!("six layers of /usr, {}", &part[4..]), &image, true);
            }
            _ => {
                let image = Image::builder().layers(40).compression(compression).build();
                moved(report, &format!("40 small layers, {}", &part[6..]), &image, true);
            }
        }
    }
}

/// Measures the ways of `image`: the pull alone, or `all`.
fn moved(report: &mut Report, what: &str, image: &Image, all: bool) {
    let registry = Registry::start();
    let tag = what.replace([' ', ',', '/'], "-").to_lowercase();
    let reference = image.push(&registry, &format!("bench:{tag}"));
    compare(report, &format!("pull {what}"), |kind| {
        let pull = |daemon: &Daemon, ()| {
            client(daemon).ok(["images", "pull", "--plain-http", &reference]);
        };
        cost_of(kind, |_| (), pull)
    });
    if !all {
        return;
    }
    let dir = crate::root().expect("a directory on disk");
    let archive = dir.path().join("image.tar");
    image.write_oci_tar(&archive, &reference);
    let archive = archive.to_string_lossy().into_owned();
    compare(report, &format!("import {what}"), |kind| {
        let import = |daemon: &Daemon, ()| {
            client(daemon).ok(["images", "import", &archive]);
        };
        cost_of(kind, |_| (), import)
    });
    let imported = |daemon: &Daemon| -> Ctr {
        let client = client(daemon);
        client.ok(["images", "import", &archive]);
        client
    };
    let limits = Limits::of(image, dir.path());
    println!(
        "{what}: digesting takes {:.1} ms, writing {:.1} ms",
        limits.digesting.as_secs_f64() * 1e3,
        limits.writing.as_secs_f64() * 1e3
    );
    if let Some(plain) = Plain::of(image, dir.path()) {
        println!(
            "{what}: tar and cp write {} KiB for {} KiB",
            plain.written / 1024,
            plain.kept / 1024
        );
    }
    let out = dir.path().join("exported.tar");
    let out = out.to_string_lossy().into_owned();
    compare(report, &format!("export {what}"), |kind| {
        cost_of(kind, imported, |_, client| {
            client.ok(["images", "export", &out, &reference]);
        })
    });
    compare(report, &format!("push {what}"), |kind| {
        let target = Registry::start();
        let cost = cost_of(kind, imported, |_, client| {
            let to = format!("{}/pushed:1", target.host());
            client.ok(["images", "push", "--plain-http", &to, &reference]);
        });
        drop(target);
        cost
    });
}

/// What nobody who moves the blobs of an image can be faster than.
struct Limits {
    digesting: Duration,
    writing: Duration,
}

impl Limits {
    fn of(image: &Image, dir: &Path) -> Self {
        let begin = Instant::now();
        image.blobs().values().for_each(|bytes| drop(Digest::of(bytes)));
        let digesting = begin.elapsed();
        let begin = Instant::now();
        let mut file = tempfile::tempfile_in(dir).expect("a temporary file");
        let written = image.blobs().values().try_for_each(|bytes| file.write_all(bytes));
        written.and_then(|()| file.sync_data()).expect("writing to disk");
        Self { digesting, writing: begin.elapsed() }
    }
}

/// What it takes on disk to have the blobs of an image and its layers unpacked, without anything
/// that remembers them.
struct Plain {
    written: u64,
    kept: u64,
}

impl Plain {
    /// Of a small image; for large ones files are nearly all there is.
    fn of(image: &Image, dir: &Path) -> Option<Self> {
        if image.blobs().values().map(|bytes| bytes.len()).sum::<usize>() > PLAIN_BYTES_MAX {
            return None;
        }
        let dir = dir.join("plain");
        let before = cost::children_written();
        for (n, bytes) in image.blobs().values().enumerate() {
            let (blob, tree) = (dir.join(format!("blob-{n}")), dir.join(n.to_string()));
            std::fs::create_dir_all(&tree).expect("making a directory");
            std::fs::write(&blob, bytes).expect("writing a blob");
            // Manifests and configs are no archives.
            if bytes.starts_with(b"{") {
                continue;
            }
            let mut tar = std::process::Command::new("tar");
            let done = tar.arg("-C").arg(&tree).arg("-xf").arg(&blob).status();
            assert!(done.is_ok_and(|status| status.success()), "tar unpacks a layer");
        }
        fresh::settle();
        let written = cost::children_written() - before;
        Some(Self { written, kept: cost::on_disk(&dir) })
    }
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

/// The cost of `work` on a daemon of its own, with its root on a disk of its own.
fn cost_of<P>(
    kind: DaemonKind,
    prepare: impl FnOnce(&Daemon) -> P,
    work: impl FnOnce(&Daemon, P),
) -> Cost {
    let disk = FreshDisk::make();
    let builder = match kind {
        DaemonKind::Containerd => Daemon::containerd(),
        DaemonKind::Gantryd => Daemon::gantryd(),
    };
    // As daemons run; those of tests log everything.
    let root = disk.path().join("root");
    let daemon = builder.root(&root).arg("--log-level").arg("info").start();
    // What was written for the round before is not this one's to wait for.
    fresh::settle();
    Cost::of(daemon, prepare, work)
}

/// The client that users of this daemon have.
fn client(daemon: &Daemon) -> Ctr {
    let client = match daemon.kind() {
        DaemonKind::Containerd => daemon.ctr(),
        DaemonKind::Gantryd => daemon.gantry(),
    };
    client.with_timeout(CLIENT_TIMEOUT)
}
