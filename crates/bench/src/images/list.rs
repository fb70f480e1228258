//! Listing many images, as a user does who types it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_testkit::{Daemon, DaemonKind, Image, Layer};
use serde_json::json;

use super::{KINDS, client};
use crate::report::Report;

/// Images that are there.
const IMAGES: usize = 1_000;

/// How often they are listed.
const ROUNDS: usize = 11;

pub(super) fn run(report: &mut Report) {
    let mut sides: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    let daemons = KINDS.map(|kind| match kind {
        DaemonKind::Containerd => Daemon::containerd().start(),
        DaemonKind::Gantryd => Daemon::gantryd().start(),
    });
    daemons.iter().for_each(fill);
    for _ in 0..ROUNDS {
        for (side, daemon) in sides.iter_mut().zip(&daemons) {
            let client = client(daemon);
            let begin = Instant::now();
            let listed = client.ok(["images", "ls"]);
            side.push(begin.elapsed());
            assert!(listed.lines().count() > IMAGES, "all images are listed");
        }
    }
    report.times(&format!("images ls of {IMAGES}"), sides);
}

/// Imports one archive of many images, none of which shares anything with another.
fn fill(daemon: &Daemon) {
    let dir = daemon.dir().join("layout");
    let top = |n: usize| {
        let layer = Layer::new().file("number", 0o644, n.to_string());
        let image = Image::builder().only_layers([layer]).build();
        let name = format!("docker.io/library/image-{n}:1");
        image.write_oci_layout(&dir, &name);
        let mut top = json!(image.top());
        top["annotations"] = json!({"io.containerd.image.name": name});
        top
    };
    let manifests: Vec<_> = (0..IMAGES).map(top).collect();
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(dir.join("index.json"), index.to_string()).expect("writing index.json");
    let archive = daemon.dir().join("many.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&dir).arg("-cf").arg(&archive).arg(".");
    assert!(tar.status().expect("tar runs").success(), "the archive is made");
    client(daemon).ok(["images", "import", "--no-unpack", &archive.to_string_lossy()]);
}
