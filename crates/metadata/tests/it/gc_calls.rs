//! The collector beside everything else: no call waits for it, but those that ask to.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_content::{Info, LocalStore, Reader, Status, Store, Writer, WriterOptions};
use gantry_core::{Descriptor, Digest, timestamp};
use gantry_errdefs::Result;
use gantry_metadata::{Db, Image, ImageDelete, ImageUpdate, Options};
use gantry_store::MemStore;
use tokio::sync::watch;

use crate::support::{MANIFEST, World, container, ctx, list, map};

/// A store that deletes nothing while its gate is shut.
struct Gated {
    inner: LocalStore,
    open: watch::Receiver<bool>,
    waiting: watch::Sender<u32>,
}

#[async_trait]
impl Store for Gated {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        self.inner.info(digest).await
    }

    async fn reader(&self, digest: &Digest) -> Result<Box<dyn Reader>> {
        self.inner.reader(digest).await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        self.open.clone().wait_for(|open| *open).await.unwrap();
        self.inner.delete(digest).await
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        self.inner.walk(visit).await
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>> {
        self.inner.writer(options).await
    }

    async fn status(&self, reference: &str) -> Result<Status> {
        self.inner.status(reference).await
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        self.inner.statuses().await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        self.inner.abort(reference).await
    }
}

/// A store whose deletions wait, the gate, and how many wait there.
struct Rig {
    db: Db,
    content: Arc<Gated>,
    gate: watch::Sender<bool>,
    waiting: watch::Receiver<u32>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (gate, open) = watch::channel(false);
        let (waiting, seen) = watch::channel(0);
        let inner = LocalStore::open(dir.path().join("content")).unwrap();
        let content = Arc::new(Gated { inner, open, waiting });
        let options = Options::new(Arc::new(MemStore::new()), Arc::clone(&content) as Arc<_>);
        let db = Db::open(options).unwrap();
        Self { db, content, gate, waiting: seen, _dir: dir }
    }

    async fn blob(&self, data: &str) -> Digest {
        let options = WriterOptions { reference: data.to_owned(), ..WriterOptions::default() };
        let mut writer = self.db.content().writer(&ctx("default"), options).await.unwrap();
        writer.write(Bytes::copy_from_slice(data.as_bytes())).await.unwrap();
        writer.commit(0, None, map(&[])).await.unwrap()
    }

    /// Waits until the collector is stuck in the backend.
    async fn stuck(&mut self) {
        self.waiting.wait_for(|waiting| *waiting > 0).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_waits_for_a_collection_that_takes_forever() {
    let mut rig = Rig::new();
    let ctx = ctx("default");
    for n in 0..200 {
        rig.blob(&format!("garbage {n}")).await;
    }
    let gc = rig.db.gc();
    let run = tokio::spawn(async move { gc.run().await });
    rig.stuck().await;

    let db = rig.db.clone();
    db.containers().create(&ctx, container("c")).await.unwrap();
    db.containers().delete(&ctx, "c").await.unwrap();
    db.leases().create(&ctx, "l", map(&[])).await.unwrap();
    let digest = rig.blob("written meanwhile").await;
    let target = Descriptor::new(MANIFEST, digest.clone(), 7);
    db.images().create(&ctx, Image::new("i", target.clone()), None).await.unwrap();
    let update = ImageUpdate { name: "i".into(), target: Some(target), ..Default::default() };
    db.images().update(&ctx, update, &list(&["target"]), None).await.unwrap();
    db.content().update(&ctx, &digest, map(&[("a", "b")]), &[]).await.unwrap();
    assert_eq!(db.content().list(&ctx, &[]).await.unwrap().len(), 1);
    db.images().delete(&ctx, "i", ImageDelete::default()).await.unwrap();
    db.leases().delete(&ctx, "l", false).await.unwrap();
    assert!(!run.is_finished(), "the collection is still at it");

    rig.gate.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().deleted, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_delete_waits_for_a_run_of_its_own() {
    let mut rig = Rig::new();
    let ctx = ctx("default");
    rig.blob("garbage").await;
    let gc = rig.db.gc();
    let run = tokio::spawn(async move { gc.run().await });
    rig.stuck().await;
    // What goes now, the run under way cannot see.
    let digest = rig.blob("of the image").await;
    let image = Image::new("i", Descriptor::new(MANIFEST, digest.clone(), 7));
    rig.db.images().create(&ctx, image, None).await.unwrap();
    rig.db.leases().create(&ctx, "l", map(&[])).await.unwrap();
    let deletes: Vec<_> = [true, false]
        .map(|of_image| {
            let (db, ctx) = (rig.db.clone(), ctx.clone());
            tokio::spawn(async move {
                if of_image {
                    let how = ImageDelete { synchronous: true, ..ImageDelete::default() };
                    db.images().delete(&ctx, "i", how).await
                } else {
                    db.leases().delete(&ctx, "l", true).await
                }
            })
        })
        .into();
    // Both are recorded before they wait.
    while rig.db.images().get(&ctx, "i").await.is_ok()
        || !rig.db.leases().list(&ctx, &[]).await.unwrap().is_empty()
    {
        tokio::task::yield_now().await;
    }
    assert!(deletes.iter().all(|delete| !delete.is_finished()));
    rig.gate.send_replace(true);
    for delete in deletes {
        delete.await.unwrap().unwrap();
    }
    assert!(rig.content.info(&digest).await.unwrap_err().is_not_found(), "its bytes are gone");
    run.await.unwrap().unwrap();
    assert!(rig.db.gc().totals().succeeded >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_expires_by_itself_while_nothing_happens() {
    let w = World::new();
    let ctx = ctx("default");
    w.db.gc().start();
    let digest = w.blob(&ctx, "manifest", &[("containerd.io/gc.root", "1")]).await;
    let soon = timestamp::format(SystemTime::now() + Duration::from_millis(300));
    let mut image = Image::new("i", Descriptor::new(MANIFEST, digest.clone(), 7));
    image.labels = map(&[("containerd.io/gc.expire", &soon)]);
    w.db.images().create(&ctx, image, None).await.unwrap();
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if w.db.images().get(&ctx, "i").await.is_err() {
            assert!(w.topics().contains(&"default /images/delete".to_owned()));
            assert!(w.has_blob(&ctx, &digest).await, "a root of its own stays");
            return;
        }
    }
    panic!("the image is still there");
}
