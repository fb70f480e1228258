//! Pulls that work.

use gantry_core::image::{Index, chain_ids};
use gantry_core::{Descriptor, Digest, Platform, media_types};
use gantry_images::{StoreOptions, progress_channel};
use gantry_testkit::{Compression, Image, Registry, Reply, StubRegistry};

use crate::rig::Rig;

fn config_digest(image: &Image) -> Digest {
    image.manifest()["config"]["digest"].as_str().unwrap().parse().unwrap()
}

fn layer_digests(image: &Image) -> Vec<Digest> {
    let layers = image.manifest()["layers"].as_array().unwrap().clone();
    layers.iter().map(|l| l["digest"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_pulls_and_unpacks_everywhere() {
    let registry = Registry::start();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let rig = Rig::new();
        let image = Image::builder().layers(3).compression(compression).build();
        let reference = image.push(&registry, "some/image:v1");
        let options = rig.pull_options(&reference, &["overlayfs", "native"]);
        let pulled = rig.transfer.pull(&rig.ctx, options).await.unwrap();
        assert_eq!(pulled.image.name, reference);
        assert_eq!(pulled.image.target.digest, image.top().digest);
        let chain = chain_ids(image.diff_ids());
        let top = chain.last().unwrap();
        assert_eq!(pulled.unpacked.len(), 2);
        for (snapshotter, unpacked) in &pulled.unpacked {
            assert_eq!(unpacked, top);
            let snapshots = rig.db.snapshotter(snapshotter).unwrap();
            for id in &chain {
                snapshots.stat(&rig.ctx, id.as_str()).await.unwrap();
            }
        }
        assert_labels(&rig, &image, registry.host()).await;
        rig.assert_nothing_left().await;
        assert!(rig.db.content().statuses(&rig.ctx, &[]).await.unwrap().is_empty());
    }
}

async fn assert_labels(rig: &Rig, image: &Image, host: &str) {
    let content = rig.db.content();
    let labels = async |digest: &Digest| content.info(&rig.ctx, digest).await.unwrap().labels;
    let source = format!("containerd.io/distribution.source.{host}");
    let manifest = labels(&image.top().digest).await;
    let config = config_digest(image);
    assert_eq!(manifest["containerd.io/gc.ref.content.config"], config.to_string());
    let chain = chain_ids(image.diff_ids());
    let snapshot = &labels(&config).await["containerd.io/gc.ref.snapshot.overlayfs"];
    assert_eq!(snapshot, chain.last().unwrap().as_str());
    for (i, layer) in layer_digests(image).iter().enumerate() {
        assert_eq!(manifest[&format!("containerd.io/gc.ref.content.l.{i}")], layer.to_string());
        let labels = labels(layer).await;
        assert_eq!(labels["containerd.io/uncompressed"], image.diff_ids()[i].to_string());
        assert_eq!(labels[&source], "some/image");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_second_pull_fetches_nothing() {
    let rig = Rig::new();
    let stub = StubRegistry::start();
    let image = Image::builder().layers(2).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let options = rig.pull_options(&reference, &["overlayfs"]);
    rig.transfer.pull(&rig.ctx, options.clone()).await.unwrap();
    let before = stub.requests().len();
    rig.transfer.pull(&rig.ctx, options).await.unwrap();
    let after = stub.requests().split_off(before);
    assert_eq!(after, ["HEAD /v2/a/b/manifests/v1"]);
    // From another repository of the registry: nothing but the new origin.
    let other = stub.serve_image(&image, "c/d", "v1");
    rig.transfer.pull(&rig.ctx, rig.pull_options(&other, &["overlayfs"])).await.unwrap();
    let info = rig.db.content().info(&rig.ctx, &image.top().digest).await.unwrap();
    let source = format!("containerd.io/distribution.source.{}", stub.host());
    assert_eq!(info.labels[&source], "a/b,c/d");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_many_pulls_fetch_once() {
    let rig = Rig::new();
    let stub = StubRegistry::start();
    let image = Image::builder().layers(3).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let each = (0..10).map(|_| {
        let options = rig.pull_options(&reference, &["overlayfs"]);
        rig.transfer.pull(&rig.ctx, options)
    });
    for pulled in futures_util::future::join_all(each).await {
        pulled.unwrap();
    }
    let requests = stub.requests();
    for layer in layer_digests(&image) {
        let get = format!("GET /v2/a/b/blobs/{layer}");
        assert_eq!(requests.iter().filter(|r| **r == get).count(), 1, "{layer}");
    }
    rig.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_fetches_the_platforms_asked_for() {
    let stub = StubRegistry::start();
    let host = gantry_core::platforms::default();
    let ours = Image::builder().platform(&host.os, &host.architecture, &host.variant).build();
    let other = Image::builder().platform("linux", "s390x", "").layers(3).build();
    let index = Image::index([other.clone(), ours.clone()]);
    let reference = stub.serve_image(&index, "multi/image", "v1");
    let has =
        async |rig: &Rig, digest: &Digest| rig.db.content().info(&rig.ctx, digest).await.is_ok();

    let rig = Rig::new();
    let options = rig.pull_options(&reference, &["native"]);
    let pulled = rig.transfer.pull(&rig.ctx, options).await.unwrap();
    assert_eq!(pulled.image.target.digest, index.top().digest);
    assert!(has(&rig, &ours.top().digest).await);
    assert!(!has(&rig, &other.top().digest).await);
    let info = rig.db.content().info(&rig.ctx, &index.top().digest).await.unwrap();
    let children = info.labels.keys().filter(|k| k.contains("gc.ref.content.m.")).count();
    assert_eq!(children, 2, "the index keeps every manifest that may come later");

    let rig = Rig::new();
    let mut options = rig.pull_options(&reference, &["native"]);
    options.store.all_metadata = true;
    rig.transfer.pull(&rig.ctx, options).await.unwrap();
    assert!(has(&rig, &config_digest(&other)).await);
    assert!(!has(&rig, &layer_digests(&other)[2]).await);

    let rig = Rig::new();
    let mut options = rig.pull_options(&reference, &["native"]);
    options.store.platforms.clear();
    let pulled = rig.transfer.pull(&rig.ctx, options).await.unwrap();
    assert!(has(&rig, &layer_digests(&other)[2]).await);
    assert_eq!(pulled.unpacked.len(), 1, "only the host's platform is unpacked");

    let rig = Rig::new();
    let mut options = rig.pull_options(&reference, &[]);
    options.store.platforms =
        vec![Platform { os: "plan9".into(), architecture: "mips".into(), ..Platform::default() }];
    let err = rig.transfer.pull(&rig.ctx, options).await.unwrap_err();
    assert!(err.is_not_found() && err.message().contains("plan9/mips"), "{err}");
    rig.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_tells_how_far_it_is() {
    let rig = Rig::new();
    let stub = StubRegistry::start();
    let image = Image::builder().big_layer(4 << 20, 1).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let (sink, mut receiver) = progress_channel();
    let mut options = rig.pull_options(&reference, &["overlayfs"]);
    options.progress = sink;
    let listening = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(progress) = receiver.next().await {
            seen.push(progress);
        }
        seen
    });
    rig.transfer.pull(&rig.ctx, options).await.unwrap();
    let seen = listening.await.unwrap();
    let last_of = |name: &str| {
        let last = seen.iter().rev().find(|p| p.name == name);
        last.map(|p| (p.stage.event().to_owned(), p.done, p.total))
    };
    for layer in layer_digests(&image) {
        let (event, done, total) = last_of(&format!("layer-{layer}")).unwrap();
        assert_eq!(event, "extracted");
        assert!(done == total && total > 0);
    }
    assert_eq!(last_of(&format!("manifest-{}", image.top().digest)).unwrap().0, "complete");
    assert_eq!(last_of(&reference).unwrap().0, "saved");
    assert_eq!(
        seen.last().unwrap().stage.event(),
        format!("Completed pull from OCI Registry ({reference})")
    );
    let layer = seen.iter().find(|p| p.name.starts_with("layer-")).unwrap();
    assert_eq!(layer.parents, [reference, format!("manifest-{}", image.top().digest)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_works_under_the_callers_lease() {
    let rig = Rig::new();
    let stub = StubRegistry::start();
    let image = Image::busybox();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let lease = rig.db.leases().create(&rig.ctx, "mine", Default::default()).await.unwrap();
    let ctx = rig.ctx.clone().with_lease(lease.id);
    let options = rig.pull_options(&reference, &["overlayfs"]);
    rig.transfer.pull(&ctx, options.clone()).await.unwrap();
    let members = rig.db.leases().resources(&rig.ctx, "mine").await.unwrap();
    for digest in image.blobs().keys() {
        assert!(members.iter().any(|m| m.id == digest.as_str()), "{digest} is not in the lease");
    }
    // Once more under another lease: that one gains what is there.
    rig.db.leases().create(&rig.ctx, "other", Default::default()).await.unwrap();
    let ctx = rig.ctx.clone().with_lease("other");
    rig.transfer.pull(&ctx, options).await.unwrap();
    let members = rig.db.leases().resources(&rig.ctx, "other").await.unwrap();
    assert!(members.iter().any(|m| m.id == image.top().digest.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn root_tags_and_replaces_names() {
    let rig = Rig::new();
    let stub = StubRegistry::start();
    let reference = stub.serve_image(&Image::busybox(), "a/b", "v1");
    rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &[])).await.unwrap();
    let sink = Default::default();
    let mut store = StoreOptions::named("example.com/x:1");
    store.labels.insert("k".into(), "v".into());
    for _ in 0..2 {
        let images = rig.transfer.tag(&rig.ctx, &reference, &store, &sink).await.unwrap();
        assert_eq!(images[0].name, "example.com/x:1");
        assert_eq!(images[0].labels["k"], "v");
    }
    assert_eq!(rig.db.images().list(&rig.ctx, &[]).await.unwrap().len(), 2);
    let err = rig.transfer.tag(&rig.ctx, "absent", &store, &sink).await.unwrap_err();
    assert!(err.is_not_found());
}

/// An index of a checkpoint has parts that are no images: they come along, with the image for the
/// platform, and with none at all.
#[tokio::test(flavor = "multi_thread")]
async fn root_parts_that_are_no_images_come_along() {
    let stub = StubRegistry::start();
    let image = Image::builder().build();
    let memory = b"memory".to_vec();
    let part = Descriptor {
        platform: Some(gantry_core::platforms::default()),
        ..Descriptor::new("application/x-memory", Digest::of(&memory), 6)
    };
    for with_image in [true, false] {
        stub.serve_image(&image, "a/b", "v1");
        let mut manifests = vec![part.clone()];
        manifests.extend(with_image.then(|| image.top().clone()));
        let bytes = serde_json::to_vec(&Index::over(manifests)).unwrap();
        let top = Digest::of(&bytes);
        for name in ["checkpoint".to_owned(), top.to_string()] {
            let reply = Reply::ok(media_types::OCI_INDEX, bytes.clone());
            stub.reply(&format!("/v2/a/b/manifests/{name}"), reply);
        }
        let reply = Reply::ok("application/octet-stream", memory.clone());
        stub.reply(&format!("/v2/a/b/blobs/{}", part.digest), reply);

        let rig = Rig::new();
        let reference = format!("{}/a/b:checkpoint", stub.host());
        let pulled = rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"]));
        assert_eq!(pulled.await.unwrap().image.target.digest, top);
        let content = rig.db.content();
        assert_eq!(content.info(&rig.ctx, &part.digest).await.unwrap().size, 6);
        assert_eq!(content.info(&rig.ctx, &image.top().digest).await.is_ok(), with_image);
        let unpacked = chain_ids(image.diff_ids()).last().unwrap().to_string();
        let snapshots = rig.db.snapshotter("overlayfs").unwrap();
        assert_eq!(snapshots.stat(&rig.ctx, &unpacked).await.is_ok(), with_image);
        rig.assert_nothing_left().await;
    }
}
