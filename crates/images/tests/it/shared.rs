//! Many pulls of one image at once.

use gantry_core::platforms::Matcher;
use gantry_core::{Context, Namespace};
use gantry_testkit::{Image, StubRegistry};

use crate::rig::Rig;

/// Directories of trees that overlayfs keeps.
fn trees(rig: &Rig) -> usize {
    std::fs::read_dir(rig.path("overlay/snapshots")).unwrap().count()
}

fn ten_namespaces() -> Vec<Context> {
    (0..10).map(|n| Context::new(Namespace::new(format!("ns{n}")).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_ten_namespaces_fetch_and_unpack_once() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let image = Image::builder().layers(4).big_layer(2 << 20, 9).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let contexts = ten_namespaces();
    let pulls = contexts.iter().map(|ctx| {
        let options = rig.pull_options(&reference, &["overlayfs"]);
        rig.transfer.pull(ctx, options)
    });
    for pulled in futures_util::future::join_all(pulls).await {
        assert_eq!(pulled.unwrap().image.target.digest, image.top().digest);
    }
    let requests = stub.requests();
    for layer in image.manifest()["layers"].as_array().unwrap() {
        let path = format!("GET /v2/a/b/blobs/{}", layer["digest"].as_str().unwrap());
        assert_eq!(requests.iter().filter(|r| **r == path).count(), 1, "{path}");
    }
    let layers = image.diff_ids().len();
    assert_eq!(trees(&rig), layers, "one tree a layer");
    let snapshots = rig.db.snapshotter("overlayfs").unwrap();
    for ctx in &contexts {
        assert_eq!(snapshots.list(ctx, &[]).await.unwrap().len(), layers, "{ctx:?}");
    }

    // What one namespace removes stays for the others, until the last has gone.
    for (n, ctx) in contexts.iter().enumerate() {
        rig.db.images().delete(ctx, &reference, Default::default()).await.unwrap();
        rig.db.gc().run().await.unwrap();
        let last = n + 1 == contexts.len();
        assert_eq!(trees(&rig), if last { 0 } else { layers }, "after {n}");
        assert!(snapshots.list(ctx, &[]).await.unwrap().is_empty());
    }
}

/// The same where every namespace has the blobs, and begins with whichever layer it likes.
#[tokio::test(flavor = "multi_thread")]
async fn root_ten_namespaces_that_have_the_blobs_unpack_once() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let image = Image::builder().layers(6).big_layer(2 << 20, 9).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let contexts = ten_namespaces();
    let mut targets = Vec::new();
    for ctx in &contexts {
        let pulled = rig.transfer.pull(ctx, rig.pull_options(&reference, &[])).await.unwrap();
        targets.push(pulled.image.target);
    }
    assert_eq!(trees(&rig), 0);
    let host = Matcher::host();
    let each = contexts.iter().zip(&targets);
    let unpacks =
        each.map(|(ctx, target)| rig.transfer.unpacker().unpack(ctx, target, "overlayfs", &host));
    let unpacked = futures_util::future::try_join_all(unpacks).await.unwrap();
    let layers = image.diff_ids().len();
    assert_eq!(unpacked.iter().map(|u| u.layers_unpacked).sum::<usize>(), layers);
    assert_eq!(trees(&rig), layers, "one tree a layer");
}

/// A tree that has the right name but was not unpacked from the right bytes is not taken.
#[tokio::test(flavor = "multi_thread")]
async fn root_only_what_was_unpacked_is_shared() {
    let (rig, stub) = (Rig::new(), StubRegistry::start());
    let image = Image::builder().layers(2).build();
    let reference = stub.serve_image(&image, "a/b", "v1");
    let other = Context::new(Namespace::new("other").unwrap());
    let snapshots = rig.db.snapshotter("overlayfs").unwrap();
    let name = image.diff_ids()[0].to_string();
    let labels: gantry_core::Labels =
        [("containerd.io/snapshot.ref".to_owned(), name.clone())].into();
    snapshots.prepare(&other, "forged", None, Default::default()).await.unwrap();
    let options = gantry_snapshots::CommitOptions { labels, ..Default::default() };
    snapshots.commit(&other, &name, "forged", options).await.unwrap();
    rig.transfer.pull(&rig.ctx, rig.pull_options(&reference, &["overlayfs"])).await.unwrap();
    let (theirs, ours) = (
        snapshots.usage(&other, &name).await.unwrap(),
        snapshots.usage(&rig.ctx, &name).await.unwrap(),
    );
    assert!(theirs.size < ours.size, "{theirs:?} {ours:?}");
    let view = snapshots.view(&rig.ctx, "look", Some(&name), Default::default()).await.unwrap();
    let mounted = rig.temp.mount_readonly(&view).unwrap();
    assert!(mounted.path().join("bin/busybox").is_file());
}
