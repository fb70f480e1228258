//! What images may be unpacked to, whichever way they come.

use gantry_core::platforms;
use gantry_images::{
    ExportOptions, ImageReference, ProgressSink, ServedPlatforms, StoreOptions, UnpackTarget,
};
use gantry_testkit::{Image, StubRegistry};

use crate::rig::Rig;

fn host(snapshotter: &str) -> UnpackTarget {
    UnpackTarget::new(&platforms::default(), snapshotter)
}

#[tokio::test(flavor = "multi_thread")]
async fn root_nothing_is_unpacked_to_what_is_not_served() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let image = Image::builder().build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let sink = ProgressSink::default();
    let only_native = ServedPlatforms::only(vec![host("native")]);
    let strict = rig.transfer_that_serves(only_native);
    let is_in = async |snapshotter: &str| {
        let top = gantry_core::image::chain_id(image.diff_ids()).unwrap();
        rig.db.snapshotter(snapshotter).unwrap().stat(&rig.ctx, top.as_str()).await.is_ok()
    };

    let err = strict.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"])).await;
    assert!(err.as_ref().is_err_and(|e| e.is_invalid_argument()), "{err:?}");
    rig.assert_untouched().await;

    // What is served is unpacked, what is not is passed by.
    strict.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs", "native"])).await.unwrap();
    assert!(is_in("native").await && !is_in("overlayfs").await);

    let store = StoreOptions { unpacks: vec![host("overlayfs")], ..StoreOptions::named("other") };
    let err = strict.tag(&rig.ctx, &reference, &store, &sink).await;
    assert!(err.as_ref().is_err_and(|e| e.is_invalid_argument()), "{err:?}");

    let mut tar = Vec::new();
    let (source, options) = (StoreOptions::named(&reference), ExportOptions::default());
    rig.transfer.export(&rig.ctx, &source, &options, &mut tar, &sink).await.unwrap();
    let prefix = ImageReference { name: "in".into(), is_prefix: true, ..Default::default() };
    let prefix = ImageReference { allow_overwrite: true, ..prefix };
    let store = StoreOptions { extra_references: vec![prefix], ..store };
    let reader = std::io::Cursor::new(tar);
    let err = strict.import(&rig.ctx, reader, &store, &sink).await;
    assert!(err.as_ref().is_err_and(|e| e.is_invalid_argument()), "{err:?}");
    assert!(!is_in("overlayfs").await);
    rig.assert_nothing_left().await;

    // Only asking to unpack is refused.
    let plain = StoreOptions::named("other");
    strict.tag(&rig.ctx, &reference, &plain, &sink).await.unwrap();
}
