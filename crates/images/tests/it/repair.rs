//! Layers and blobs that are damaged on disk, found and made whole.

use std::fs;
use std::path::{Path, PathBuf};

use gantry_core::platforms::Matcher;
use gantry_core::{Digest, Labels};
use gantry_images::{ApplyRequest, LayerDiffer};
use gantry_metadata::{BadLayer, BlobScan, LayerScan};
use gantry_snapshots::CommitOptions;

use crate::support::{Fixture, Image, layer};

const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];

fn layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[("etc/a", "one"), ("etc/b", "one"), ("gone", "one")]),
        layer(&[("etc/b", "two two"), (".wh.gone", "")]),
        layer(&[("etc/c", "three three")]),
    ]
}

/// Every file of this content in the directories of a snapshotter.
fn files(fixture: &Fixture, snapshotter: &str, content: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![fixture.root().join(snapshotter).join("snapshots")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            } else if fs::read(&path).is_ok_and(|bytes| bytes == content.as_bytes()) {
                found.push(path);
            }
        }
    }
    found
}

fn blob(fixture: &Fixture, digest: &Digest) -> PathBuf {
    fixture.root().join("content/blobs/sha256").join(digest.hex())
}

async fn bad(fixture: &Fixture) -> Vec<BadLayer> {
    fixture.db.upkeep().bad_layers(LayerScan::All).await.unwrap()
}

/// Truncates a file without a trace in its times, as a power cut would.
fn truncate(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.set_len(0).unwrap();
    file.set_modified(time).unwrap();
}

#[tokio::test]
async fn root_a_damaged_layer_is_unpacked_again_under_what_is_on_top() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()).await;
    for snapshotter in SNAPSHOTTERS {
        let host = Matcher::host();
        fixture.unpacker.unpack(&fixture.ctx, &image.manifest, snapshotter, &host).await.unwrap();
        let whole = fixture.tree(snapshotter, &image.chain[2]).await;
        assert_eq!(bad(&fixture).await, []);
        // In the layer itself, and for native in the copy above.
        for file in files(&fixture, snapshotter, "two two") {
            truncate(&file);
        }
        let found = bad(&fixture).await;
        assert_eq!(found[0].key, image.chain[1].to_string());
        assert!(found[0].reason.contains("bytes, committed with"), "{found:?}");
        let origin = found[0].origin.clone().unwrap();
        assert_eq!(
            (&origin.diff_id, origin.blob),
            (&image.diff_ids[1], Some(image.layers[1].digest.clone()))
        );
        for layer in &found {
            fixture.unpacker.repair(layer).await.unwrap();
        }
        assert_eq!(bad(&fixture).await, []);
        assert_eq!(fixture.tree(snapshotter, &image.chain[2]).await, whole);
        assert_eq!(whole["etc/b"], "two two");
        assert!(!whole.contains_key("gone"));
    }
}

#[tokio::test]
async fn root_layers_that_clients_commit_are_repaired_as_well() {
    let fixture = Fixture::new();
    for with_label in [false, true] {
        let image = fixture.image(&layers()).await;
        let snapshots = fixture.db.snapshotter("overlayfs").unwrap();
        for (i, name) in image.chain.iter().enumerate() {
            let parent = i.checked_sub(1).map(|below| image.chain[below].as_str());
            let mounts =
                snapshots.prepare(&fixture.ctx, "extract", parent, Labels::new()).await.unwrap();
            let differ = fixture.unpacker.differ();
            differ
                .apply(&fixture.ctx, &image.layers[i], &mounts, ApplyRequest::default())
                .await
                .unwrap();
            if with_label {
                // The daemon was restarted in between and knows nothing of the call; the label
                // that clients put on the blob tells.
                let twice = fixture.db.clone();
                let unknown = gantry_snapshots::LayerOrigin {
                    diff_id: image.diff_ids[i].clone(),
                    blob: None,
                };
                twice.note_applied(&mounts, unknown);
                let key = "containerd.io/uncompressed".to_owned();
                let path = format!("labels.{key}");
                let labels = Labels::from([(key, image.diff_ids[i].to_string())]);
                let digest = &image.layers[i].digest;
                let content = fixture.db.content();
                content.update(&fixture.ctx, digest, labels, &[path]).await.unwrap();
            }
            let options = CommitOptions::default();
            snapshots.commit(&fixture.ctx, name.as_str(), "extract", options).await.unwrap();
        }
        truncate(&files(&fixture, "overlayfs", "two two")[0]);
        let found = bad(&fixture).await;
        assert_eq!(found.len(), 1, "{found:?}");
        fixture.unpacker.repair(&found[0]).await.unwrap();
        assert_eq!(fixture.tree("overlayfs", &image.chain[2]).await["etc/b"], "two two");
        for name in image.chain.iter().rev() {
            snapshots.remove(&fixture.ctx, name.as_str()).await.unwrap();
        }
        fixture.db.gc().run().await.unwrap();
    }
}

#[tokio::test]
async fn root_bad_blobs_are_dropped_and_what_needs_them_given_up() {
    let fixture = Fixture::new();
    let image: Image = fixture.image(&layers()).await;
    let unpack = async || {
        let host = Matcher::host();
        fixture.unpacker.unpack(&fixture.ctx, &image.manifest, "overlayfs", &host).await
    };
    unpack().await.unwrap();
    let upkeep = fixture.db.upkeep();
    assert_eq!(upkeep.bad_blobs(BlobScan::All).await.unwrap(), []);
    let [gone, short, wrong] = [0, 1, 2].map(|i| &image.layers[i].digest);
    fs::remove_file(blob(&fixture, gone)).unwrap();
    fs::write(blob(&fixture, short), "short").unwrap();
    let mut bytes = fs::read(blob(&fixture, wrong)).unwrap();
    bytes[20] ^= 1;
    fs::write(blob(&fixture, wrong), bytes).unwrap();

    let by_size = upkeep.bad_blobs(BlobScan::Sizes).await.unwrap();
    assert_eq!(by_size.len(), 2, "{by_size:?}");
    let long_after = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    assert_eq!(upkeep.bad_blobs(BlobScan::Since(long_after)).await.unwrap().len(), 2);
    let all = upkeep.bad_blobs(BlobScan::All).await.unwrap();
    assert_eq!(all.len(), 3);
    let reasons: String = all.iter().map(|b| format!("{}\n", b.reason)).collect();
    for reason in ["is gone", "has 5 bytes, its record", "has the digest sha256:"] {
        assert!(reasons.contains(reason), "{reasons}");
    }
    for blob in &all {
        assert_eq!(blob.namespaces, ["test"]);
        assert!(upkeep.drop_blob(blob).await.unwrap());
        assert!(!upkeep.drop_blob(blob).await.unwrap());
        assert!(fixture.db.content().info(&fixture.ctx, &blob.digest).await.is_err());
    }
    assert_eq!(upkeep.bad_blobs(BlobScan::All).await.unwrap(), []);

    // A layer cannot be unpacked again without its blob: it goes, and what is on top of it.
    truncate(&files(&fixture, "overlayfs", "two two")[0]);
    let found = bad(&fixture).await;
    assert_eq!((found.len(), &found[0].origin), (1, &None));
    assert!(fixture.unpacker.repair(&found[0]).await.unwrap_err().is_not_found());
    assert_eq!(upkeep.give_up(&found[0]).await.unwrap(), 2);
    assert_eq!(fixture.snapshots("overlayfs").await, [image.chain[0].to_string()]);
    // Fetched again, the image is whole again.
    for (media_type, bytes) in &image.blobs {
        fixture.put(media_type, bytes).await;
    }
    assert_eq!(unpack().await.unwrap().layers_unpacked, 2);
    assert_eq!(fixture.tree("overlayfs", &image.chain[2]).await["etc/b"], "two two");
}

#[tokio::test]
async fn root_a_blob_that_unpacks_to_something_else_repairs_nothing() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()).await;
    let host = Matcher::host();
    fixture.unpacker.unpack(&fixture.ctx, &image.manifest, "overlayfs", &host).await.unwrap();
    truncate(&files(&fixture, "overlayfs", "two two")[0]);
    // Of the same size, and a good layer: only its digest tells.
    let original = fs::read(blob(&fixture, &image.layers[1].digest)).unwrap();
    let other = layer(&[("etc/b", "bad bad"), (".wh.gone", "")]);
    let mut other = crate::support::gzip(&other);
    other.resize(original.len(), 0);
    fs::write(blob(&fixture, &image.layers[1].digest), &other).unwrap();
    let found = bad(&fixture).await;
    let err = fixture.unpacker.repair(&found[0]).await.unwrap_err();
    assert!(err.is_failed_precondition() || err.is_invalid_argument(), "{err}");
    assert_eq!(bad(&fixture).await.len(), 1);
    assert!(files(&fixture, "overlayfs", "bad bad").is_empty(), "nothing of it is left");
}
