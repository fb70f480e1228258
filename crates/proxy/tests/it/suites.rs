//! The conformance suites of the traits, over gRPC.

use gantry_content::testsuite::{get, open, put};
use gantry_content::{Store, WriterOptions};
use gantry_core::Labels;
use gantry_proxy::{ProxySnapshotter, ProxyStore};
use gantry_snapshots::testsuite::{Counts, layer};
use gantry_snapshots::{Kind, Snapshotter};
use gantry_testkit::{Daemon, DaemonBuilder};

use crate::{plugin, without_gc};

async fn snapshotter(remote: DaemonBuilder, name: &str, counts: Counts) {
    let (remote, target) = (without_gc(remote), tempfile::tempdir().unwrap());
    let sn = ProxySnapshotter::new(plugin(name, &remote));
    gantry_snapshots::testsuite::records(&sn).await;
    gantry_snapshots::testsuite::trees(&sn, target.path(), counts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_overlayfs_of_gantryd() {
    snapshotter(Daemon::gantryd(), "overlayfs", Counts::Files).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_native_of_gantryd() {
    snapshotter(Daemon::gantryd(), "native", Counts::FilesOfAll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_content_of_gantryd() {
    let remote = without_gc(Daemon::gantryd());
    let store = ProxyStore::new(plugin("content", &remote));
    gantry_content::testsuite::behind_the_api(&store).await;
}

/// Debian's containerd has bugs of its own that the suites find; what every client does works.
#[tokio::test(flavor = "multi_thread")]
async fn root_snapshots_of_containerd() {
    let remote = without_gc(Daemon::containerd());
    for name in ["native", "overlayfs"] {
        let sn = ProxySnapshotter::new(plugin(name, &remote));
        layer(&sn, "base", None).await.unwrap();
        layer(&sn, "top", Some("base")).await.unwrap();
        let labels = Labels::from([("containerd.io/snapshot/x".to_owned(), "1".to_owned())]);
        let mounts = sn.prepare("web", Some("top"), labels.clone()).await.unwrap();
        assert_eq!(sn.mounts("web").await.unwrap(), mounts);
        let info = sn.stat("web").await.unwrap();
        assert_eq!((info.kind, info.parent.as_deref()), (Kind::Active, Some("top")));
        assert_eq!(info.labels, labels);
        assert!(sn.prepare("web", None, Labels::new()).await.unwrap_err().is_already_exists());
        assert!(sn.remove("base").await.unwrap_err().is_failed_precondition());
        let mut names = Vec::new();
        sn.walk(&mut |info| {
            names.push(info.name);
            Ok(())
        })
        .await
        .unwrap();
        names.sort();
        assert_eq!(names, ["base", "top", "web"]);
        for name in ["web", "top", "base"] {
            sn.remove(name).await.unwrap();
        }
        assert!(sn.stat("base").await.unwrap_err().is_not_found());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_content_of_containerd() {
    let remote = without_gc(Daemon::containerd());
    let store = ProxyStore::new(plugin("content", &remote));
    let data = vec![7; 3 << 20];
    let digest = put(&store, "one", &data).await.unwrap();
    assert_eq!(store.info(&digest).await.unwrap().size, data.len() as u64);
    assert_eq!(get(&store, &digest).await.unwrap(), data);
    let reader = store.reader(&digest).await.unwrap();
    assert_eq!(reader.read_at(data.len() as u64 - 1, 9).await.unwrap(), [7][..]);
    let again = WriterOptions { reference: "two".into(), total: 0, expected: Some(digest.clone()) };
    assert!(store.writer(again).await.err().unwrap().is_already_exists());
    let mut half = open(&store, "half").await.unwrap();
    half.write(bytes::Bytes::from_static(b"half")).await.unwrap();
    assert_eq!(store.status("half").await.unwrap().offset, 4);
    drop(half);
    store.delete(&digest).await.unwrap();
    assert!(store.info(&digest).await.unwrap_err().is_not_found());
}
