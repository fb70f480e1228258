//! Layers that come as erofs images.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use gantry_archive::{Compression, Compressor};
use gantry_core::{Descriptor, Digest, Labels};
use gantry_images::{ApplyRequest, Differ, ErofsDiffer, LayerDiffer};
use gantry_snapshots::CommitOptions;

use crate::rig::Rig;

const EROFS_LAYER: &str = "application/vnd.erofs.layer.v1";

/// The image of a directory with one file.
fn image(dir: &Path, name: &str, text: &str) -> Vec<u8> {
    let (tree, image) = (dir.join("tree"), dir.join("image"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join(name), text).unwrap();
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&tree).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::read(image).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_layer_that_is_an_erofs_image_is_committed_as_it_is() {
    let (rig, snapshotter) = Rig::with_erofs();
    let dir = tempfile::tempdir().unwrap();
    let bytes = image(dir.path(), "file", "text");
    let differ = ErofsDiffer::new(Differ::new(rig.db.clone(), rig.temp.clone()));
    let sn = rig.db.snapshotter("erofs").unwrap();
    let mut packed = Compressor::new(Vec::new(), Compression::Zstd).unwrap();
    packed.write_all(&bytes).unwrap();
    let packed = packed.finish().unwrap();
    let (plain, zstd_type) = (EROFS_LAYER.to_owned(), format!("{EROFS_LAYER}+zstd"));
    for (media_type, blob) in [(plain, bytes.clone()), (zstd_type, packed)] {
        let layer = rig.put(&media_type, &blob).await;
        let mounts = sn.prepare(&rig.ctx, "extract", None, Labels::new()).await.unwrap();
        let request = ApplyRequest::default();
        let applied = differ.apply(&rig.ctx, &layer, &mounts, request).await.unwrap();
        let size = i64::try_from(bytes.len()).unwrap();
        assert_eq!(applied, Descriptor::new(EROFS_LAYER, Digest::of(&bytes), size));
        let name = media_type.as_str();
        let options = CommitOptions::default();
        sn.commit(&rig.ctx, name, "extract", options).await.unwrap();
        let view = sn.view(&rig.ctx, "view", Some(name), Labels::new()).await.unwrap();
        let at = rig.temp.mount(&view).unwrap();
        assert_eq!(fs::read_to_string(at.path().join("file")).unwrap(), "text");
        at.unmount().unwrap();
        sn.remove(&rig.ctx, "view").await.unwrap();
    }

    // Not into other snapshots, and nothing else.
    let layer = rig.put(EROFS_LAYER, &bytes).await;
    let overlay = rig.db.snapshotter("overlayfs").unwrap();
    let mounts = overlay.prepare(&rig.ctx, "o", None, Labels::new()).await.unwrap();
    let err = differ.apply(&rig.ctx, &layer, &mounts, ApplyRequest::default()).await.unwrap_err();
    assert!(err.is_unimplemented(), "{err}");
    let other = rig.put(EROFS_LAYER, b"something else").await;
    let mounts = sn.prepare(&rig.ctx, "bad", None, Labels::new()).await.unwrap();
    let err = differ.apply(&rig.ctx, &other, &mounts, ApplyRequest::default()).await.unwrap_err();
    assert!(err.is_invalid_argument() && err.message().contains("no erofs image"), "{err}");
    snapshotter.close().await.unwrap();
}
