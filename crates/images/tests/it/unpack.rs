//! Layers into snapshots.

use std::io::Read;
use std::time::Duration;

use gantry_core::platforms::Matcher;
use gantry_core::{Digest, Labels};
use gantry_images::{ApplyRequest, DiffRequest, LayerDiffer, LayerSource, LayerTask};
use gantry_snapshots::CommitOptions;

use crate::support::{Fixture, Image, layer};

fn layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[("etc/a", "1"), ("etc/b", "1"), ("gone", "1")]),
        layer(&[("etc/b", "2"), (".wh.gone", "")]),
        layer(&[("etc/.wh..wh..opq", ""), ("etc/c", "3")]),
    ]
}

#[tokio::test]
async fn root_an_image_unpacks_once_to_the_same_tree_everywhere() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()).await;
    let host = Matcher::host();
    for snapshotter in ["overlayfs", "native"] {
        let unpack = || fixture.unpacker.unpack(&fixture.ctx, &image.manifest, snapshotter, &host);
        let done = unpack().await.unwrap();
        assert_eq!(done.layers_unpacked, 3);
        assert_eq!(done.chain_id.as_ref(), image.chain.last());
        assert_eq!(unpack().await.unwrap().layers_unpacked, 0);
        let top = fixture.tree(snapshotter, &image.chain[2]).await;
        assert_eq!(top.into_keys().collect::<Vec<_>>(), ["etc/", "etc/c"]);
        let middle = fixture.tree(snapshotter, &image.chain[1]).await;
        assert_eq!(middle["etc/b"], "2");
        assert!(!middle.contains_key("gone"));

        let config = fixture.db.content().info(&fixture.ctx, &image.config.digest).await.unwrap();
        let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
        assert_eq!(config.labels[&label], image.chain[2].to_string());
    }
    for (layer, diff_id) in image.layers.iter().zip(&image.diff_ids) {
        let info = fixture.db.content().info(&fixture.ctx, &layer.digest).await.unwrap();
        assert_eq!(info.labels["containerd.io/uncompressed"], diff_id.to_string());
    }
    assert!(fixture.db.leases().list(&fixture.ctx, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn root_what_the_config_does_not_promise_is_refused() {
    let fixture = Fixture::new();
    let mut diff_ids: Vec<Digest> = layers().iter().map(|l| Digest::of(l)).collect();
    diff_ids[1] = Digest::of(b"something else");
    let image = Image::with_diff_ids(&layers(), diff_ids);
    for (media_type, bytes) in &image.blobs {
        fixture.put(media_type, bytes).await;
    }
    let result =
        fixture.unpacker.unpack(&fixture.ctx, &image.manifest, "overlayfs", &Matcher::host()).await;
    let err = result.unwrap_err();
    assert!(err.is_failed_precondition(), "{err}");
    assert_eq!(fixture.snapshots("overlayfs").await, [image.chain[0].to_string()]);
}

#[tokio::test]
async fn root_bad_layers_and_bad_images_leave_nothing() {
    let fixture = Fixture::new();
    let cut = {
        // Inside the content: a layer may do without what fills its last block.
        let mut cut = layer(&[("a", &"1".repeat(1000))]);
        cut.truncate(700);
        cut
    };
    let climbing = layer(&[("../x", "1")]);
    for bad in [cut, climbing] {
        let image = fixture.image(&[bad]).await;
        let result = fixture
            .unpacker
            .unpack(&fixture.ctx, &image.manifest, "overlayfs", &Matcher::host())
            .await;
        let err = result.unwrap_err();
        assert!(err.is_invalid_argument(), "{err}");
    }
    assert!(fixture.snapshots("overlayfs").await.is_empty());
    let image = fixture.image(&layers()).await;
    let unknown =
        fixture.unpacker.unpack(&fixture.ctx, &image.manifest, "nope", &Matcher::host()).await;
    assert!(unknown.unwrap_err().is_invalid_argument());
    fixture.db.content().delete(&fixture.ctx, &image.layers[2].digest).await.unwrap();
    let missing =
        fixture.unpacker.unpack(&fixture.ctx, &image.manifest, "overlayfs", &Matcher::host()).await;
    assert!(missing.unwrap_err().is_not_found());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_many_unpackings_of_one_image_do_the_work_once() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()).await;
    let matcher = Matcher::host();
    let all = (0..8)
        .map(|_| fixture.unpacker.unpack(&fixture.ctx, &image.manifest, "overlayfs", &matcher));
    let done = futures_util::future::try_join_all(all).await.unwrap();
    assert_eq!(done.iter().map(|d| d.layers_unpacked).sum::<usize>(), 3);
    let mut want: Vec<String> = image.chain.iter().map(Digest::to_string).collect();
    want.sort();
    assert_eq!(fixture.snapshots("overlayfs").await, want);
}

/// More layers than are unpacked side by side; of each four, one deletes in a directory that only
/// the layers below have, and so cannot be unpacked before them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_layers_side_by_side_make_what_one_after_another_does() {
    let fixture = Fixture::new();
    let names: Vec<String> = (0..40).map(|n| format!("dir{}/file{n}", n % 4)).collect();
    let deletions: Vec<String> =
        (0..40).map(|n| format!("dir{}/.wh.file{}", n % 4, n - n % 4)).collect();
    let layers: Vec<Vec<u8>> = (0..40)
        .map(|n| match n % 4 {
            3 => layer(&[(&deletions[n - 3], "")]),
            _ => layer(&[(&names[n], &"x".repeat(n * 1000)), ("common", &n.to_string())]),
        })
        .collect();
    let image = fixture.image(&layers).await;
    let host = Matcher::host();
    let mut trees = Vec::new();
    // native has its layers one after another.
    for snapshotter in ["overlayfs", "native"] {
        let done = fixture.unpacker.unpack(&fixture.ctx, &image.manifest, snapshotter, &host).await;
        assert_eq!(done.unwrap().layers_unpacked, 40);
        assert_eq!(fixture.snapshots(snapshotter).await.len(), 40);
        trees.push(fixture.tree(snapshotter, &image.chain[39]).await);
    }
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0]["common"], "38");
    assert!(!trees[0].contains_key("dir0/file36") && trees[0].contains_key("dir1/file37"));
}

/// A stream that gives its bytes and then waits for the end of the test.
struct Stuck {
    bytes: Vec<u8>,
    end: std::sync::mpsc::Receiver<()>,
}

impl Read for Stuck {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.bytes.is_empty() {
            let _gone = self.end.recv_timeout(Duration::from_secs(1));
            return Ok(0);
        }
        let len = buf.len().min(self.bytes.len());
        buf[..len].copy_from_slice(&self.bytes[..len]);
        self.bytes.drain(..len);
        Ok(len)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_dropped_unpacking_leaves_no_snapshot() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()).await;
    let task = || LayerTask {
        parent: None,
        chain_id: image.chain[0].clone(),
        diff_id: image.diff_ids[0].clone(),
        blob: None,
        labels: Labels::new(),
    };
    let (_keep, end) = std::sync::mpsc::sync_channel(1);
    let stuck = Stuck { bytes: layers()[0][..600].to_vec(), end };
    let source = LayerSource::Stream(Box::new(stuck));
    let unpacking = fixture.unpacker.unpack_layer(&fixture.ctx, "overlayfs", task(), source);
    assert!(tokio::time::timeout(Duration::from_millis(200), unpacking).await.is_err());
    // The next one waits until the first has cleaned up.
    let source = LayerSource::Blob(image.layers[0].clone());
    let again = fixture.unpacker.unpack_layer(&fixture.ctx, "overlayfs", task(), source);
    assert!(tokio::time::timeout(Duration::from_secs(20), again).await.unwrap().unwrap());
    assert_eq!(fixture.snapshots("overlayfs").await, [image.chain[0].to_string()]);
}

#[tokio::test]
async fn root_the_difference_of_mounts_is_a_layer_that_applies() {
    let fixture = Fixture::new();
    let image = fixture.image(&layers()[..1]).await;
    for snapshotter in ["overlayfs", "native"] {
        let host = Matcher::host();
        fixture.unpacker.unpack(&fixture.ctx, &image.manifest, snapshotter, &host).await.unwrap();
        let snapshots = fixture.db.snapshotter(snapshotter).unwrap();
        let base = Some(image.chain[0].as_str());
        let ctx = &fixture.ctx;
        let right = snapshots.prepare(ctx, "container", base, Labels::new()).await.unwrap();
        let left = snapshots.view(ctx, "below", base, Labels::new()).await.unwrap();
        let mounted = fixture.temp.mount(&right).unwrap();
        std::fs::write(mounted.path().join("etc/new"), "new").unwrap();
        std::fs::remove_file(mounted.path().join("gone")).unwrap();
        mounted.unmount().unwrap();

        let request = DiffRequest {
            labels: Labels::from([("mine".to_owned(), "1".to_owned())]),
            source_date_epoch: Some(1),
            ..DiffRequest::default()
        };
        let (ctx, differ) = (fixture.ctx.clone(), fixture.unpacker.differ());
        let lease = fixture.db.leases().create(&ctx, "keep", Labels::new()).await;
        let ctx = ctx.with_lease(lease.unwrap().id);
        let described = differ.diff(&ctx, &left, &right, request.clone()).await.unwrap();
        assert_eq!(described.media_type, "application/vnd.oci.image.layer.v1.tar+gzip");
        let info = fixture.db.content().info(&ctx, &described.digest).await.unwrap();
        assert_eq!(info.labels["mine"], "1");
        // The same again is the same blob.
        let again = differ.diff(&ctx, &left, &right, request).await.unwrap();
        assert_eq!(again, described);

        let target = snapshots.prepare(&ctx, "target", base, Labels::new()).await.unwrap();
        let synced = ApplyRequest { sync: true, ..ApplyRequest::default() };
        let plain = differ.apply(&ctx, &described, &target, synced).await.unwrap();
        assert_eq!(info.labels["containerd.io/uncompressed"], plain.digest.to_string());
        let options = CommitOptions::default();
        snapshots.commit(&ctx, "done", "target", options).await.unwrap();
        let view = snapshots.view(&ctx, "look", Some("done"), Labels::new()).await.unwrap();
        let seen = fixture.temp.mount_readonly(&view).unwrap();
        let names: Vec<_> = crate::support::tree(seen.path()).into_keys().collect();
        assert_eq!(names, ["etc/", "etc/a", "etc/b", "etc/new"]);
        seen.unmount().unwrap();
        fixture.db.leases().delete(&fixture.ctx, "keep", false).await.unwrap();

        let odd = DiffRequest { media_type: "text/plain".into(), ..DiffRequest::default() };
        assert!(differ.diff(&ctx, &left, &right, odd).await.unwrap_err().is_unimplemented());
    }
}
