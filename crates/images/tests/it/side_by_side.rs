//! Layers unpacked side by side give the tree that layers unpacked in turn give.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use gantry_core::image::chain_ids;
use gantry_core::{Digest, Labels};
use gantry_testkit::{Image, Layer, Reply, StubRegistry, seed};

use crate::rig::Rig;

const ROUNDS: usize = 10;

/// How long the lowest layer keeps the others from having a parent.
const HELD_UP: Duration = Duration::from_millis(150);

/// Few names, so that layers meet.
const DIRS: [&str; 4] = ["a", "a/b", "d", "a/b/e"];
const FILES: [&str; 5] = ["a/x", "a/b/y", "d/z", "w", "a/b/e/v"];

fn random_layer(random: &mut fastrand::Rng, n: usize) -> Layer {
    let mut layer = Layer::new();
    // Builders name the directories they write into; some do not, and those layers must wait.
    if random.u8(0..4) > 0 {
        for dir in DIRS {
            layer = layer.dir(dir, 0o700 + random.u32(0..0o77));
        }
    }
    for _ in 0..random.usize(1..6) {
        let file = random.choice(FILES).unwrap();
        let dir = random.choice(DIRS).unwrap();
        layer = match random.u8(0..8) {
            0..4 => layer.file(file, 0o600 + random.u32(0..0o77), format!("{n}: {file}")),
            4 => layer.whiteout(file),
            5 => layer.whiteout(dir).dir(dir, 0o711),
            6 => layer.opaque(dir),
            _ => layer.symlink(&format!("{dir}-link"), "x"),
        };
    }
    layer
}

/// What is at each path: type and mode, owner, content or target.
fn look(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else if meta.is_dir() {
                todo.push(path.clone());
                String::new()
            } else {
                std::fs::read_to_string(&path).unwrap()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, format!("{:o} {} {content}", meta.mode(), meta.uid()));
        }
    }
    found
}

/// Every layer's tree by chain ID, after a pull into one snapshotter.
async fn trees(rig: &Rig, snapshotter: &str, image: &Image) -> Vec<BTreeMap<String, String>> {
    let snapshots = rig.db.snapshotter(snapshotter).unwrap();
    let mut all = Vec::new();
    for id in chain_ids(image.diff_ids()) {
        let key = format!("look {id}");
        let mounts =
            snapshots.view(&rig.ctx, &key, Some(id.as_str()), Labels::new()).await.unwrap();
        let mounted = rig.temp.mount_readonly(&mounts).unwrap();
        all.push(look(mounted.path()));
        mounted.unmount().unwrap();
        snapshots.remove(&rig.ctx, &key).await.unwrap();
    }
    all
}

/// Serves the image with its lowest layer held up.
fn serve(stub: &StubRegistry, image: &Image, held_up: Duration) -> String {
    let reference = stub.serve_image(image, "a/b", "v1");
    let lowest: Digest = image.manifest()["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let mut reply = Reply::ok("application/octet-stream", image.blob(&lowest));
    reply.delay = held_up;
    stub.reply(&format!("/v2/a/b/blobs/{lowest}"), reply);
    reference
}

#[tokio::test(flavor = "multi_thread")]
async fn root_random_stacks_unpack_to_the_same_trees() {
    let mut random = fastrand::Rng::with_seed(seed());
    for round in 0..ROUNDS {
        let count = random.usize(2..6);
        let layers: Vec<Layer> = (0..count).map(|n| random_layer(&mut random, n)).collect();
        let image = Image::builder().only_layers(layers).build();
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        let reference = serve(&stub, &image, HELD_UP);
        let ahead = rig.pull_options(&reference, &["overlayfs"]);
        let in_turn = rig.pull_options(&reference, &["native"]);
        rig.transfer.pull(&rig.ctx, ahead).await.unwrap();
        rig.transfer.pull(&rig.ctx, in_turn).await.unwrap();
        let (one, other) =
            (trees(&rig, "overlayfs", &image).await, trees(&rig, "native", &image).await);
        for (n, (one, other)) in one.iter().zip(&other).enumerate() {
            assert_eq!(one, other, "round {round}, layer {n}");
        }
        rig.assert_nothing_left().await;
    }
}

/// An image of erofs is made of one layer alone, so layers need not wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn root_erofs_layers_unpack_side_by_side() {
    let mut random = fastrand::Rng::with_seed(seed());
    for round in 0..3 {
        let layers: Vec<Layer> = (0..4).map(|n| random_layer(&mut random, n)).collect();
        let image = Image::builder().only_layers(layers).build();
        let ((rig, erofs), stub) = (Rig::with_erofs(), StubRegistry::start());
        let reference = serve(&stub, &image, HELD_UP);
        for snapshotter in ["erofs", "native"] {
            let options = rig.pull_options(&reference, &[snapshotter]);
            rig.transfer.pull(&rig.ctx, options).await.unwrap();
        }
        let (one, other) =
            (trees(&rig, "erofs", &image).await, trees(&rig, "native", &image).await);
        for (n, (one, other)) in one.iter().zip(&other).enumerate() {
            assert_eq!(one, other, "round {round}, layer {n}");
        }
        erofs.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_layers_do_not_wait_for_those_below() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let layer = |n: usize| Layer::new().file(&format!("f{n}"), 0o644, "x");
    let image = Image::builder().only_layers((0..3).map(layer)).build();
    let reference = serve(&stub, &image, Duration::from_secs(2));
    let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
    let upper = chain_ids(image.diff_ids())[2].clone();
    let watching = async {
        let snapshots = rig.db.snapshotter("overlayfs").unwrap();
        for _ in 0..90 {
            let active = snapshots.list(&rig.ctx, &["kind==active".to_owned()]).await.unwrap();
            if active.iter().any(|s| s.name.ends_with(upper.as_str())) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    };
    let (pulled, ahead) = tokio::join!(pull, watching);
    pulled.unwrap();
    assert!(ahead, "the top layer waited for the lowest one");
    let snapshots = rig.db.snapshotter("overlayfs").unwrap();
    let info = snapshots.stat(&rig.ctx, upper.as_str()).await.unwrap();
    assert_eq!(info.parent.as_deref(), Some(chain_ids(image.diff_ids())[1].as_str()));
    rig.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_failing_lower_layer_takes_those_above_with_it() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let layer = |n: usize| Layer::new().file(&format!("f{n}"), 0o644, "x");
    let image = Image::builder().only_layers((0..3).map(layer)).build();
    let reference = serve(&stub, &image, Duration::ZERO);
    let lowest = image.manifest()["layers"][0]["digest"].as_str().unwrap().to_owned();
    let mut reply = Reply::status(404);
    reply.delay = Duration::from_millis(300);
    stub.reply(&format!("/v2/a/b/blobs/{lowest}"), reply);
    let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
    assert!(pull.await.unwrap_err().is_not_found());
    rig.assert_untouched().await;
    let snapshots = rig.db.snapshotter("overlayfs").unwrap();
    assert!(snapshots.list(&rig.ctx, &[]).await.unwrap().is_empty());
}
