//! What the collector keeps and what it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gantry_content::WriterOptions;
use gantry_core::{Context, Descriptor, Digest, timestamp};
use gantry_metadata::{Container, Image, ImageDelete, Sandbox};

use crate::support::{MANIFEST, SN, World, container, ctx, map, resource};

const PAST: &str = "2020-01-01T00:00:00Z";

async fn with_label(w: &World, ctx: &Context, data: &str, label: &str, value: &str) -> Digest {
    w.blob(ctx, data, &[(label, value)]).await
}

#[tokio::test]
async fn an_image_keeps_what_it_names_and_what_that_refers_to() {
    let w = World::new();
    let ctx = ctx("default");
    w.layer(&ctx, "chain1", None).await;
    w.layer(&ctx, "chain2", Some("chain1")).await;
    w.layer(&ctx, "loose", None).await;
    let layer = w.blob(&ctx, "layer", &[]).await;
    let config =
        with_label(&w, &ctx, "config", "containerd.io/gc.ref.snapshot.native", "chain2").await;
    let refs = [
        ("containerd.io/gc.ref.content.config", config.as_str()),
        ("containerd.io/gc.ref.content.l.0", layer.as_str()),
    ];
    let manifest = w.blob(&ctx, "manifest", &refs).await;
    let loose = w.blob(&ctx, "loose", &[]).await;
    w.image(&ctx, "img", &manifest).await;
    w.events();

    let stats = w.collect().await;
    assert_eq!((stats.removed, stats.deleted), (2, 2));
    for digest in [&layer, &config, &manifest] {
        assert!(w.has_blob(&ctx, digest).await && w.stored(digest).await);
    }
    assert!(!w.has_blob(&ctx, &loose).await && !w.stored(&loose).await);
    assert!(w.has_snapshot(&ctx, "chain1").await && w.has_snapshot(&ctx, "chain2").await);
    // Content goes silently, snapshots do not.
    assert_eq!(w.topics(), ["default /snapshot/remove"]);

    w.remove_image(&ctx, "img").await;
    for digest in [&layer, &config, &manifest] {
        assert!(!w.has_blob(&ctx, digest).await && !w.stored(digest).await);
    }
    assert_eq!(w.native_count().await, 0);
}

#[tokio::test]
async fn a_container_keeps_its_snapshot_and_its_references() {
    let w = World::new();
    let ctx = ctx("default");
    w.layer(&ctx, "base", None).await;
    w.db.snapshotter(SN).unwrap().prepare(&ctx, "c", Some("base"), map(&[])).await.unwrap();
    let blob = w.blob(&ctx, "spec", &[]).await;
    let mut c = Container { snapshotter: SN.into(), snapshot_key: "c".into(), ..container("c") };
    c.labels = map(&[("containerd.io/gc.ref.content", blob.as_str())]);
    w.db.containers().create(&ctx, c).await.unwrap();
    w.collect().await;
    assert!(w.has_snapshot(&ctx, "base").await && w.has_blob(&ctx, &blob).await);
    w.db.containers().delete(&ctx, "c").await.unwrap();
    w.collect().await;
    assert_eq!(w.native_count().await, 0);
    assert!(!w.has_blob(&ctx, &blob).await);
}

#[tokio::test]
async fn roots_sandboxes_and_back_references() {
    let w = World::new();
    let ctx = ctx("default");
    let rooted = with_label(&w, &ctx, "rooted", "containerd.io/gc.root", "").await;
    // An empty value is no label at all.
    w.collect().await;
    assert!(!w.has_blob(&ctx, &rooted).await);
    let rooted = with_label(&w, &ctx, "rooted", "containerd.io/gc.root", "yes").await;
    let of_pod = w.blob(&ctx, "of the pod", &[]).await;
    let mut pod = Sandbox::new("pod");
    pod.labels = map(&[("containerd.io/gc.ref.content.x", of_pod.as_str())]);
    w.db.sandboxes().create(&ctx, pod).await.unwrap();
    w.db.containers().create(&ctx, container("c")).await.unwrap();
    let log = with_label(&w, &ctx, "log", "containerd.io/gc.bref.container.log", "c").await;
    let lost = with_label(&w, &ctx, "lost", "containerd.io/gc.bref.container", "none").await;
    let sbom = with_label(&w, &ctx, "sbom", "containerd.io/gc.bref.content", rooted.as_str()).await;
    w.layer(&ctx, "snap", None).await;
    let root = map(&[("containerd.io/gc.root", "1")]);
    w.db.snapshotter(SN).unwrap().update(&ctx, "snap", root, &[]).await.unwrap();
    let label = "containerd.io/gc.cond.snapshot.native";
    let recently = timestamp::format(SystemTime::now() - Duration::from_secs(60));
    let cached = |data, limit| {
        let value = format!("usedat<{limit}|snap");
        let labels = [(label.to_owned(), value), (USED_AT.to_owned(), recently.clone())];
        let (w, ctx) = (&w, &ctx);
        async move {
            let labels: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            w.blob(ctx, data, &labels).await
        }
    };
    let fresh = cached("fresh", "1h").await;
    let stale = cached("stale", "10s").await;
    w.collect().await;
    for (digest, want) in [
        (&rooted, true),
        (&of_pod, true),
        (&log, true),
        (&lost, false),
        (&sbom, true),
        (&fresh, true),
        (&stale, false),
    ] {
        assert_eq!(w.has_blob(&ctx, digest).await, want, "{digest}");
    }
    w.db.containers().delete(&ctx, "c").await.unwrap();
    w.collect().await;
    assert!(!w.has_blob(&ctx, &log).await);
}

const USED_AT: &str = "containerd.io/gc.cond.value-usedat";

#[tokio::test]
async fn leases_keep_flatly_or_deeply_until_they_expire() {
    let w = World::new();
    let ctx = ctx("default");
    for (lease, flat) in [("deep", false), ("flat", true)] {
        let child = w.blob(&ctx, &format!("{lease} child"), &[]).await;
        let refs = [("containerd.io/gc.ref.content.0", child.as_str())];
        let parent = w.blob(&ctx, &format!("{lease} parent"), &refs).await;
        w.layer(&ctx, &format!("{lease}-base"), None).await;
        let top = format!("{lease}-top");
        w.layer(&ctx, &top, Some(&format!("{lease}-base"))).await;
        let labels = if flat { map(&[("containerd.io/gc.flat", "1")]) } else { map(&[]) };
        w.db.leases().create(&ctx, lease, labels).await.unwrap();
        for r in [resource("content", parent.as_str()), resource("snapshots/native", &top)] {
            w.db.leases().add_resource(&ctx, lease, r).await.unwrap();
        }
        w.collect().await;
        assert!(w.has_blob(&ctx, &parent).await);
        assert_eq!(w.has_blob(&ctx, &child).await, !flat);
        assert!(w.has_snapshot(&ctx, &format!("{lease}-base")).await);
        w.db.leases().delete(&ctx, lease, true).await.unwrap();
        assert!(!w.has_blob(&ctx, &parent).await);
        assert_eq!(w.native_count().await, 0);
    }
    let expired = map(&[("containerd.io/gc.expire", PAST)]);
    w.db.leases().create(&ctx, "old", expired.clone()).await.unwrap();
    let blob = w.blob(&ctx.clone().with_lease("old"), "leased", &[]).await;
    let mut image = Image::new("old", Descriptor::new(MANIFEST, blob.clone(), 1));
    image.labels = expired;
    w.db.images().create(&ctx, image, None).await.unwrap();
    w.events();
    w.collect().await;
    assert_eq!(w.db.leases().list(&ctx, &[]).await.unwrap(), []);
    assert_eq!(w.db.images().list(&ctx, &[]).await.unwrap(), []);
    assert!(!w.has_blob(&ctx, &blob).await);
    assert_eq!(w.topics(), ["default /images/delete"]);
}

#[tokio::test]
async fn namespaces_do_not_keep_for_each_other() {
    let w = World::new();
    let (a, b) = (ctx("a"), ctx("b"));
    let digest = w.blob(&a, "same", &[]).await;
    w.blob(&b, "same", &[]).await;
    w.image(&b, "img", &digest).await;
    w.collect().await;
    assert!(!w.has_blob(&a, &digest).await && w.has_blob(&b, &digest).await);
    assert!(w.stored(&digest).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_goes_by_itself_while_nothing_happens() {
    let w = World::new();
    let ctx = ctx("default");
    w.db.gc().start();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let soon = timestamp::format(SystemTime::now() + Duration::from_millis(300));
    let labels = map(&[("containerd.io/gc.expire", &soon)]);
    w.db.leases().create(&ctx, "l", labels).await.unwrap();
    let blob = w.blob(&ctx.clone().with_lease("l"), "leased", &[]).await;
    assert!(w.has_blob(&ctx, &blob).await);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The first run is that of the start; one is counted when it ends.
        if !w.stored(&blob).await && w.db.gc().totals().succeeded >= 2 {
            assert_eq!(w.db.leases().list(&ctx, &[]).await.unwrap(), []);
            return;
        }
    }
    panic!("the lease is still there");
}

#[tokio::test]
async fn an_open_writer_is_left_alone() {
    let w = World::new();
    let ctx = ctx("default");
    let options = WriterOptions { reference: "r".into(), ..WriterOptions::default() };
    let mut writer = w.db.content().writer(&ctx, options).await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
    w.collect().await;
    w.db.gc().reconcile().await.unwrap();
    writer.write(Bytes::from_static(b" done")).await.unwrap();
    let digest = writer.commit(9, None, map(&[])).await.unwrap();
    assert!(w.stored(&digest).await);
}

/// Pulls, prunes, removals and collections at the same time: an image that was reported made has
/// all it names until it is removed, and in the end nothing is left over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_live_is_lost_while_everything_happens() {
    const PULLERS: u32 = 4;
    const PULLS: u32 = 12;
    let w = Arc::new(World::new());
    let stop = Arc::new(AtomicBool::new(false));
    let collector = tokio::spawn({
        let (w, stop) = (Arc::clone(&w), Arc::clone(&stop));
        async move {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) {
                w.collect().await;
                runs += 1;
            }
            runs
        }
    });
    let pullers: Vec<_> = (0..PULLERS)
        .map(|puller| {
            let w = Arc::clone(&w);
            tokio::spawn(async move {
                for n in 0..PULLS {
                    pull_and_remove(&w, puller, n).await;
                }
            })
        })
        .collect();
    for puller in pullers {
        puller.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(collector.await.unwrap() > 0);
    let ctx = ctx("default");
    w.collect().await;
    w.collect().await;
    assert_eq!(w.db.content().list(&ctx, &[]).await.unwrap(), []);
    assert_eq!(w.native_count().await, 0);
    let report = w.db.gc().reconcile().await.unwrap();
    assert_eq!(report, gantry_metadata::Reconciled::default());
}

async fn pull_and_remove(w: &World, puller: u32, n: u32) {
    let plain = ctx("default");
    let lease = w.db.leases().create(&plain, &format!("l{puller}-{n}"), map(&[])).await.unwrap();
    let ctx = plain.clone().with_lease(lease.id.clone());
    // Layers are shared between the images of all pullers.
    let mut layers = Vec::new();
    for layer in [n % 3, n % 4, 10 + puller] {
        let data = format!("layer {layer}");
        let digest = Digest::of(data.as_bytes());
        match w.try_blob(&ctx, &data, &[]).await {
            Ok(_) => {}
            Err(err) if err.is_already_exists() => {}
            // Someone else fetches it: wait, as clients do.
            Err(err) if err.is_unavailable() => {
                while !w.has_blob(&ctx, &digest).await {
                    match w.try_blob(&ctx, &data, &[]).await {
                        Ok(_) => break,
                        Err(err) if err.is_already_exists() => break,
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
                let r = resource("content", digest.as_str());
                w.db.leases().add_resource(&ctx, &lease.id, r).await.unwrap();
                if !w.has_blob(&ctx, &digest).await {
                    w.db.leases().delete(&plain, &lease.id, false).await.unwrap();
                    return;
                }
            }
            Err(err) => panic!("{err}"),
        }
        layers.push(digest);
    }
    let chain = format!("chain {puller} {n}");
    w.layer(&ctx, &chain, None).await;
    let mut labels = map(&[("containerd.io/gc.ref.snapshot.native", &chain)]);
    for (i, digest) in layers.iter().enumerate() {
        let label = format!("containerd.io/gc.ref.content.l.{i}");
        labels.insert(label, digest.as_str().to_owned());
    }
    let labels: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let manifest = w.blob(&ctx, &format!("manifest {puller} {n}"), &labels).await;
    let name = format!("img {puller} {n}");
    w.image(&ctx, &name, &manifest).await;
    w.db.leases().delete(&plain, &lease.id, false).await.unwrap();
    for _ in 0..3 {
        tokio::task::yield_now().await;
        assert!(w.has_blob(&plain, &manifest).await, "{name} lost its manifest");
        for digest in &layers {
            assert!(w.has_blob(&plain, digest).await, "{name} lost {digest}");
            assert!(w.stored(digest).await, "{name} lost the bytes of {digest}");
        }
        assert!(w.has_snapshot(&plain, &chain).await, "{name} lost its snapshot");
    }
    w.db.images().delete(&plain, &name, ImageDelete::default()).await.unwrap();
}
