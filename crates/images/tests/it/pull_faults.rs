//! Registries that break, lie and stall: the error has the right class and names the object, and
//! nothing is left behind.

use std::time::Duration;

use gantry_core::{Digest, media_types};
use gantry_errdefs::Class;
use gantry_testkit::{Image, Layer, Reply, StubRegistry};
use serde_json::json;

use crate::rig::Rig;

fn digest_in(value: &serde_json::Value) -> Digest {
    value["digest"].as_str().unwrap().parse().unwrap()
}

/// Serves `body` as the manifest of `a/b:v1`.
fn serve_manifest(stub: &StubRegistry, media_type: &str, body: &str) -> String {
    let reply = Reply::ok(media_type, body);
    let digest = Digest::of(body.as_bytes());
    stub.reply("/v2/a/b/manifests/v1", reply.clone());
    stub.reply(&format!("/v2/a/b/manifests/{digest}"), reply);
    format!("{}/a/b:v1", stub.host())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_manifests_are_refused() {
    let d = Digest::of(b"x");
    let good = json!({
        "schemaVersion": 2,
        "config": {"mediaType": media_types::OCI_CONFIG, "digest": d, "size": 3},
        "layers": [],
    })
    .to_string();
    let cases = [
        (media_types::OCI_MANIFEST, "{".to_owned(), "not valid"),
        (media_types::OCI_MANIFEST, "null".to_owned(), "not valid"),
        (media_types::OCI_MANIFEST, good[..good.len() / 2].to_owned(), "not valid"),
        (media_types::OCI_MANIFEST, good.replace("sha256:", "md5:"), "digest"),
        (media_types::OCI_MANIFEST, good.replace("\"size\":3", "\"size\":-3"), "negative"),
        (media_types::OCI_MANIFEST, good.replace("\"layers\"", "\"manifests\""), "both"),
        (media_types::OCI_INDEX, json!({"schemaVersion": 7}).to_string(), "schema version"),
        (
            media_types::DOCKER_MANIFEST,
            json!({"schemaVersion": 1, "fsLayers": []}).to_string(),
            "schema 1",
        ),
        (media_types::DOCKER_SCHEMA1, "{}".to_owned(), "schema 1"),
        ("application/json", "{}".to_owned(), "media type"),
    ];
    for (media_type, body, why) in cases {
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        let reference = serve_manifest(&stub, media_type, &body);
        let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
        let err = pull.await.unwrap_err();
        assert_eq!(err.class(), Class::InvalidArgument, "{body}: {err}");
        assert!(err.message().contains(why), "{body}: {err}");
        rig.assert_untouched().await;
        let ingests = rig.db.content().statuses(&rig.ctx, &[]).await.unwrap();
        assert!(ingests.is_empty(), "{body}: {ingests:?}");
        assert!(rig.db.content().list(&rig.ctx, &[]).await.unwrap().is_empty(), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_pieces_are_named() {
    let image = Image::builder().layers(2).build();
    let manifest = image.manifest();
    for digest in [digest_in(&manifest["config"]), digest_in(&manifest["layers"][1])] {
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        let reference = stub.serve_image(&image, "a/b", "v1");
        stub.reply(&format!("/v2/a/b/blobs/{digest}"), Reply::status(404));
        let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
        let err = pull.await.unwrap_err();
        assert!(err.is_not_found(), "{err}");
        assert!(err.message().contains(digest.as_str()), "{err}");
        rig.assert_untouched().await;
    }
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let pull = rig.pull_options(&format!("{}/a/b:none", stub.host()), &[]);
    assert!(rig.transfer.pull(&rig.ctx, pull).await.unwrap_err().is_not_found());
    rig.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_wrong_bytes_are_data_loss() {
    let image = Image::builder().layers(2).build();
    let manifest = image.manifest();
    for digest in [digest_in(&manifest["config"]), digest_in(&manifest["layers"][1])] {
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        let reference = stub.serve_image(&image, "a/b", "v1");
        let mut body = image.blob(&digest).to_vec();
        let middle = body.len() / 2;
        body[middle] ^= 0x55;
        stub.reply(&format!("/v2/a/b/blobs/{digest}"), Reply::ok("application/octet-stream", body));
        let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
        let err = pull.await.unwrap_err();
        assert_eq!(err.class(), Class::DataLoss, "{err}");
        assert!(err.message().contains(digest.as_str()), "{err}");
        rig.assert_untouched().await;
        let ingests = rig.db.content().statuses(&rig.ctx, &[]).await.unwrap();
        let kept = ingests.iter().any(|i| i.reference.ends_with(digest.as_str()));
        assert!(!kept, "wrong bytes are not kept to be resumed: {ingests:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_wrong_sizes_and_empty_answers_are_errors() {
    let image = Image::builder().layers(2).build();
    let layer = digest_in(&image.manifest()["layers"][1]);
    let body = image.blob(&layer).to_vec();
    for wrong in [Vec::new(), body[..body.len() - 1].to_vec(), [body.clone(), vec![0]].concat()] {
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        let reference = stub.serve_image(&image, "a/b", "v1");
        let len = wrong.len();
        stub.reply(&format!("/v2/a/b/blobs/{layer}"), Reply::ok("application/x", wrong));
        let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
        let err = pull.await.unwrap_err();
        assert_eq!(err.class(), Class::DataLoss, "{len}: {err}");
        rig.assert_untouched().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_cut_connections_are_survived() {
    let rig = Rig::new();
    let stub = StubRegistry::start();
    let image = Image::builder().big_layer(3 << 20, 7).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    for layer in image.manifest()["layers"].as_array().unwrap() {
        let digest = digest_in(layer);
        let mut reply = Reply::ok("application/octet-stream", image.blob(&digest));
        reply.cut_after = Some(700_000);
        stub.reply(&format!("/v2/a/b/blobs/{digest}"), reply);
    }
    let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
    assert_eq!(pull.await.unwrap().unpacked.len(), 1);
    rig.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_partial_ingests_are_resumed_and_bad_ones_replaced() {
    let image = Image::builder().big_layer(2 << 20, 9).build();
    let layer = digest_in(&image.manifest()["layers"][1]);
    let bytes = image.blob(&layer).to_vec();
    let garbage = vec![0u8; bytes.len() / 2];
    for partial in [bytes[..bytes.len() / 2].to_vec(), garbage, vec![1; bytes.len() + 10]] {
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        let reference = stub.serve_image(&image, "a/b", "v1");
        let options = gantry_content::WriterOptions {
            reference: format!("layer-{layer}"),
            ..gantry_content::WriterOptions::default()
        };
        let mut writer = rig.db.content().writer(&rig.ctx, options).await.unwrap();
        writer.write(partial.into()).await.unwrap();
        drop(writer);
        let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
        pull.await.unwrap();
        rig.assert_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_layers_must_be_what_the_config_promises() {
    let good = Image::builder().only_layers([Layer::new().file("a", 0o644, "a")]).build();
    let manifest = good.manifest();
    let config_digest = digest_in(&manifest["config"]);
    let mut config: serde_json::Value = serde_json::from_slice(good.blob(&config_digest)).unwrap();
    let cases = [
        (json!([Digest::of(b"other")]), Class::FailedPrecondition),
        (json!([]), Class::InvalidArgument),
        (json!(["sha256:zz"]), Class::InvalidArgument),
    ];
    for (diff_ids, class) in cases {
        config["rootfs"]["diff_ids"] = diff_ids.clone();
        let config_bytes = serde_json::to_vec(&config).unwrap();
        let mut manifest = manifest.clone();
        manifest["config"]["digest"] = json!(Digest::of(&config_bytes));
        manifest["config"]["size"] = json!(config_bytes.len());
        let (rig, stub) = (Rig::new(), StubRegistry::start());
        stub.serve_image(&good, "a/b", "good");
        let blob = format!("/v2/a/b/blobs/{}", Digest::of(&config_bytes));
        stub.reply(&blob, Reply::ok("application/json", config_bytes));
        let reference = serve_manifest(&stub, media_types::OCI_MANIFEST, &manifest.to_string());
        let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
        let err = pull.await.unwrap_err();
        assert_eq!(err.class(), class, "{diff_ids}: {err}");
        rig.assert_untouched().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_unknown_snapshotters_are_refused() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let reference = stub.serve_image(&Image::busybox(), "a/b", "v1");
    let pull = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["btrfs"]));
    let err = pull.await.unwrap_err();
    assert!(err.is_invalid_argument() && err.message().contains("btrfs"), "{err}");
    rig.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_cancelled_pull_leaves_nothing_locked() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let image = Image::builder().layers(3).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let slow = digest_in(&image.manifest()["layers"][2]);
    let path = format!("/v2/a/b/blobs/{slow}");
    let mut reply = Reply::ok("application/octet-stream", image.blob(&slow));
    reply.delay = Duration::from_secs(2);
    stub.reply(&path, reply.clone());
    let options = rig.pull_options(&reference, &["overlayfs"]);
    let pull = rig.transfer.pull(&rig.ctx, options.clone());
    let patience = Duration::from_millis(500);
    assert!(tokio::time::timeout(patience, pull).await.is_err(), "the pull was to hang");
    // The rest goes in the background; then the same pull works at once.
    rig.settle().await;
    rig.assert_untouched().await;
    reply.delay = Duration::ZERO;
    stub.reply(&path, reply);
    rig.transfer.pull(&rig.ctx, options).await.unwrap();
    rig.assert_nothing_left().await;
}
