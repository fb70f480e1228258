//! Pulls from a registry with random faults, by a printed seed: a pull works or leaves nothing,
//! and once the faults are gone it works.

use std::time::Duration;

use gantry_core::Digest;
use gantry_core::image::chain_ids;
use gantry_testkit::{Compression, Image, Reply, StubRegistry, seed};

use crate::rig::Rig;

const ROUNDS: usize = 12;

fn path_of(descriptor: &gantry_core::Descriptor) -> String {
    let is_manifest = gantry_core::media_types::is_manifest(&descriptor.media_type)
        || gantry_core::media_types::is_index(&descriptor.media_type);
    let kind = if is_manifest { "manifests" } else { "blobs" };
    format!("/v2/a/b/{kind}/{}", descriptor.digest)
}

/// A fault of a whole answer.
fn spoil(random: &mut fastrand::Rng, mut reply: Reply) -> Reply {
    let len = reply.body.len();
    match random.u8(0..8) {
        0 => return Reply::status(404),
        1 => return Reply::status(503),
        2 => return Reply::status(403),
        3 => reply.cut_after = Some(random.usize(0..len)),
        4 => {
            let at = random.usize(0..len);
            reply.body[at] ^= 1 << random.u8(0..8);
        }
        5 => reply.body.truncate(random.usize(0..len)),
        6 => reply.body.extend_from_slice(b"more"),
        _ => reply.delay = Duration::from_millis(random.u64(0..100)),
    }
    reply
}

async fn assert_whole(rig: &Rig, image: &Image) {
    let content = rig.db.content();
    for (digest, bytes) in image.blobs() {
        let reader = content.reader(&rig.ctx, digest).await.unwrap();
        let stored = reader.read_at(0, bytes.len() + 1).await.unwrap();
        assert_eq!(Digest::of(&stored), *digest);
    }
    let snapshots = rig.db.snapshotter("overlayfs").unwrap();
    for chain_id in chain_ids(image.diff_ids()) {
        snapshots.stat(&rig.ctx, chain_id.as_str()).await.unwrap();
    }
    rig.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_random_faults_end_well_or_leave_nothing() {
    let mut random = fastrand::Rng::with_seed(seed());
    for round in 0..ROUNDS {
        let compression = random.choice([Compression::Gzip, Compression::Zstd, Compression::None]);
        let layers = random.usize(1..5);
        let image = Image::builder().compression(compression.unwrap()).layers(layers).build();
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        let reference = stub.serve_image(&image, "a/b", "v1");
        let faulty = random.usize(1..3);
        for descriptor in random.choose_multiple(image.descriptors().to_vec(), faulty) {
            let reply = Reply::ok(&descriptor.media_type, image.blob(&descriptor.digest));
            stub.reply(&path_of(&descriptor), spoil(&mut random, reply));
        }
        let options = rig.pull_options(&reference, &["overlayfs"]);
        match rig.transfer.pull(&rig.ctx, options.clone()).await {
            Ok(_) => assert_whole(&rig, &image).await,
            Err(error) => {
                println!("round {round}: {error}");
                rig.assert_untouched().await;
                stub.serve_image(&image, "a/b", "v1");
                rig.transfer.pull(&rig.ctx, options).await.unwrap();
                assert_whole(&rig, &image).await;
            }
        }
    }
}
