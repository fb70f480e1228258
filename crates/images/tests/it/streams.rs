//! Import and export as transfers: names and unpacking.

use gantry_core::platforms::Matcher;
use gantry_images::{
    ExportOptions, ImageReference, ProgressSink, StoreOptions, UnpackTarget, progress_channel,
};
use gantry_testkit::{Image, StubRegistry};

use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn root_what_is_exported_can_be_imported_and_unpacked() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let image = Image::builder().layers(2).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &[])).await.unwrap();
    let mut tar = Vec::new();
    let source = StoreOptions::named(&reference);
    let sink = ProgressSink::default();
    let options = ExportOptions::default();
    rig.transfer.export(&rig.ctx, &source, &options, &mut tar, &sink).await.unwrap();

    let fresh = Rig::new();
    let store = StoreOptions {
        extra_references: vec![ImageReference {
            name: "imported".into(),
            is_prefix: true,
            allow_overwrite: true,
            ..ImageReference::default()
        }],
        unpacks: vec![UnpackTarget { matcher: Matcher::host(), snapshotter: "overlayfs".into() }],
        ..StoreOptions::default()
    };
    let (sink, mut receiver) = progress_channel();
    let reader = std::io::Cursor::new(tar.clone());
    let images = fresh.transfer.import(&fresh.ctx, reader, &store, &sink).await.unwrap();
    drop(sink);
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].name, reference);
    assert_eq!(images[0].target.digest, image.top().digest);
    let top = gantry_core::image::chain_id(image.diff_ids()).unwrap();
    fresh.db.snapshotter("overlayfs").unwrap().stat(&fresh.ctx, top.as_str()).await.unwrap();
    let mut events = Vec::new();
    while let Some(progress) = receiver.next().await {
        events.push(progress.stage.event().to_owned());
    }
    // Newer steps of an object take the place of older ones that nobody has read.
    assert_eq!(events.first().unwrap(), "Importing");
    assert_eq!(events.iter().filter(|e| *e == "extracted").count(), image.diff_ids().len());
    assert_eq!(events[events.len() - 2..], ["saved", "Completed import"]);
    fresh.assert_nothing_left().await;

    let nameless = StoreOptions::default();
    let reader = std::io::Cursor::new(tar);
    let other = Rig::new();
    let sink = ProgressSink::default();
    let err = other.transfer.import(&other.ctx, reader, &nameless, &sink).await.unwrap_err();
    assert!(err.is_not_found(), "{err}");
    other.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn export_errors_name_the_image() {
    let rig = Rig::new();
    let sink = ProgressSink::default();
    let options = ExportOptions::default();
    let source = StoreOptions::named("absent");
    let mut out = Vec::new();
    let err = rig.transfer.export(&rig.ctx, &source, &options, &mut out, &sink).await.unwrap_err();
    assert!(err.is_not_found() && err.message().contains("absent"), "{err}");
    assert!(out.is_empty());
}
