//! Pushes to a real registry.

use gantry_core::Reference;
use gantry_core::platforms::Matcher;
use gantry_images::{ProgressSink, PushOptions, progress_channel};
use gantry_testkit::{Image, Registry, StubRegistry};

use crate::rig::Rig;

fn push_options(rig: &Rig, image: &str, to: &str) -> PushOptions {
    PushOptions {
        image: image.to_owned(),
        reference: Reference::parse(to).unwrap(),
        resolver: rig.transfer.resolver().clone(),
        platform: None,
        progress: ProgressSink::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_was_pushed_can_be_pulled() {
    let (rig, registry, stub) = (Rig::new(), Registry::start(), StubRegistry::start());
    let image = Image::builder().layers(3).build();
    let from = stub.serve_image(&image, "a/b", "v1");
    rig.transfer.pull(&rig.ctx, rig.pull_options(&from, &[])).await.unwrap();
    let to = format!("{}/x/y:v2", registry.host());
    let (sink, mut receiver) = progress_channel();
    let options = PushOptions { progress: sink, ..push_options(&rig, &from, &to) };
    let pushed = rig.transfer.push(&rig.ctx, options).await.unwrap();
    assert_eq!(pushed.digest, image.top().digest);
    let mut events = Vec::new();
    while let Some(progress) = receiver.next().await {
        events.push(progress.stage.event().to_owned());
    }
    assert_eq!(events.last().unwrap(), &format!("Completed push to OCI Registry ({to})"));
    assert_eq!(registry.status_of("/v2/x/y/manifests/v2"), 200);
    let fresh = Rig::new();
    let pulled =
        fresh.transfer.pull(&fresh.ctx, fresh.pull_options(&to, &["native"])).await.unwrap();
    assert_eq!(pulled.image.target.digest, image.top().digest);

    // To a second repository: blobs are mounted from the first.
    let second = format!("{}/z:v1", registry.host());
    let (sink, mut receiver) = progress_channel();
    let options = PushOptions { progress: sink, ..push_options(&rig, &from, &second) };
    rig.transfer.push(&rig.ctx, options).await.unwrap();
    while let Some(progress) = receiver.next().await {
        assert_ne!(progress.stage.event(), "uploading");
    }
    assert_eq!(registry.status_of("/v2/z/manifests/v1"), 200);
    rig.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_partial_indexes_need_a_platform() {
    let (rig, registry, stub) = (Rig::new(), Registry::start(), StubRegistry::start());
    let host = gantry_core::platforms::default();
    let ours = Image::builder().platform(&host.os, &host.architecture, &host.variant).build();
    let other = Image::builder().platform("linux", "s390x", "").layers(1).build();
    let index = Image::index([ours.clone(), other]);
    let from = stub.serve_image(&index, "a/b", "v1");
    rig.transfer.pull(&rig.ctx, rig.pull_options(&from, &[])).await.unwrap();
    let to = format!("{}/x:v1", registry.host());
    let err = rig.transfer.push(&rig.ctx, push_options(&rig, &from, &to)).await.unwrap_err();
    assert!(err.is_not_found() && err.message().contains(&from), "{err}");
    assert_eq!(registry.status_of("/v2/x/manifests/v1"), 404);
    let options = PushOptions { platform: Some(Matcher::host()), ..push_options(&rig, &from, &to) };
    let pushed = rig.transfer.push(&rig.ctx, options).await.unwrap();
    assert_eq!(pushed.digest, ours.top().digest);
    assert_eq!(registry.status_of("/v2/x/manifests/v1"), 200);

    let mut all = rig.pull_options(&from, &[]);
    all.store.platforms.clear();
    rig.transfer.pull(&rig.ctx, all).await.unwrap();
    let whole = format!("{}/whole:v1", registry.host());
    rig.transfer.push(&rig.ctx, push_options(&rig, &from, &whole)).await.unwrap();
    assert_eq!(registry.status_of("/v2/whole/manifests/v1"), 200);
    rig.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_images_are_named() {
    let (rig, registry) = (Rig::new(), Registry::start());
    let to = format!("{}/x:v1", registry.host());
    let err = rig.transfer.push(&rig.ctx, push_options(&rig, "absent", &to)).await.unwrap_err();
    assert!(err.is_not_found() && err.message().contains("absent"), "{err}");
    rig.assert_nothing_left().await;
}
