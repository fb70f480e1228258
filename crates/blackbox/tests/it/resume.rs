//! A pull that ends at nine tenths of a layer goes on there.

use std::fs;
use std::path::Path;

use gantry_testkit::{DaemonKind, Image, Reply, StubRegistry, eventually};

use crate::rig::{Client, Rig};

/// Bytes of the layer; it does not compress.
const SIZE: usize = 20 << 20;

/// The largest file of a half-written blob below the daemon's root.
fn written(root: &Path) -> u64 {
    let ingests = root.join("io.containerd.content.v1.content/ingest");
    let files = fs::read_dir(ingests).into_iter().flatten().flatten();
    let sizes = files.map(|dir| dir.path().join("data").metadata().map_or(0, |data| data.len()));
    sizes.max().unwrap_or(0)
}

/// Pulls until the registry stalls, has `end` end that, and pulls again.
fn ended_at_nine_tenths(end: impl FnOnce(&mut Rig, gantry_testkit::Background)) {
    let (mut rig, stub) = (Rig::new(DaemonKind::Gantryd, Client::Gantry), StubRegistry::start());
    let image = Image::builder().big_layer(SIZE, 3).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let layer = &image.manifest()["layers"][1];
    let path = format!("/v2/a/b/blobs/{}", layer["digest"].as_str().unwrap());
    let bytes = image.blob(&layer["digest"].as_str().unwrap().parse().unwrap());
    let whole = Reply::ok(layer["mediaType"].as_str().unwrap(), bytes);
    let nine_tenths = bytes.len() / 10 * 9;
    stub.reply(&path, Reply { stall_after: Some(nine_tenths), ..whole.clone() });

    let pull = ["images", "pull", "--plain-http", &reference];
    let pulling = rig.client.spawn(pull);
    let root = rig.daemon.root();
    eventually("nine tenths are there", || {
        // A little of it waits to be written with what comes next.
        let (there, wanted) = (written(&root), (nine_tenths - SIZE / 25) as u64);
        if stub.stalled() > 0 && there >= wanted { Ok(()) } else { Err(format!("{there} bytes")) }
    });
    end(&mut rig, pulling);
    eventually("the connection is closed", || match stub.stalled() {
        0 => Ok(()),
        n => Err(format!("{n} connections")),
    });
    stub.reply(&path, whole);
    let before = stub.sent(&path);
    rig.client.ok(pull);
    let again = stub.sent(&path) - before;
    let most = (bytes.len() / 10 + bytes.len() / 20) as u64;
    assert!(again <= most, "{again} bytes fetched again of {}", bytes.len());
    assert!(rig.client.ok(["images", "check"]).contains("complete (3/3)"));
    assert_eq!(rig.client.ok(["run", "--rm", &reference, "c1", "echo", "hi"]), "hi\n");
}

#[test]
fn root_after_a_kill() {
    ended_at_nine_tenths(|rig, pulling| {
        rig.daemon.kill9();
        pulling.kill();
        rig.daemon.start_again();
    });
}

#[test]
fn root_after_the_client_went_away() {
    ended_at_nine_tenths(|_, pulling| {
        pulling.kill();
    });
}
