//! A store to test with, and short words for what tests do to it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use gantry_content::{LocalStore, WriterOptions};
use gantry_core::{Context, Descriptor, Digest, Labels, Namespace};
use gantry_errdefs::{Class, Error, Result};
use gantry_metadata::SharingPolicy;
use gantry_metadata::{Container, Db, Event, EventSink, Image, ImageDelete, Options, Resource};
use gantry_snapshots::{Native, NativeConfig, Snapshotter};
use gantry_store::{MemStore, Store};

pub(crate) const SN: &str = "native";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Keeps every event.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Vec<(String, Event)>>);

impl EventSink for Recorder {
    fn publish(&self, namespace: &Namespace, event: &Event) {
        self.0.lock().unwrap().push((namespace.as_str().to_owned(), event.clone()));
    }
}

/// A store in a directory of its own.
pub(crate) struct World {
    pub(crate) db: Db,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) content: Arc<dyn gantry_content::Store>,
    pub(crate) native: Arc<dyn Snapshotter>,
    recorder: Arc<Recorder>,
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_policy(SharingPolicy::Shared)
    }

    pub(crate) fn with_policy(policy: SharingPolicy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemStore::new());
        Self::open(dir, store, policy)
    }

    pub(crate) fn open(
        dir: tempfile::TempDir,
        store: Arc<dyn Store>,
        policy: SharingPolicy,
    ) -> Self {
        let content: Arc<dyn gantry_content::Store> =
            Arc::new(LocalStore::open(dir.path().join("content")).unwrap());
        let native: Arc<dyn Snapshotter> = Arc::new(
            Native::open(dir.path().join("native"), NativeConfig::default(), Arc::clone(&store))
                .unwrap(),
        );
        let recorder = Arc::new(Recorder::default());
        let mut options = Options::new(Arc::clone(&store), Arc::clone(&content));
        options.policy = policy;
        options.snapshotters.insert(SN.to_owned(), Arc::clone(&native));
        options.events = Arc::clone(&recorder) as Arc<dyn EventSink>;
        let db = Db::open(options).unwrap();
        Self { db, store, content, native, recorder, dir }
    }

    /// The events since the last call, as `namespace topic`.
    pub(crate) fn topics(&self) -> Vec<String> {
        self.events().iter().map(|(ns, event)| format!("{ns} {}", event.topic())).collect()
    }

    pub(crate) fn events(&self) -> Vec<(String, Event)> {
        std::mem::take(&mut self.recorder.0.lock().unwrap())
    }

    pub(crate) async fn blob(&self, ctx: &Context, data: &str, labels: &[(&str, &str)]) -> Digest {
        self.try_blob(ctx, data, labels).await.unwrap()
    }

    pub(crate) async fn try_blob(
        &self,
        ctx: &Context,
        data: &str,
        labels: &[(&str, &str)],
    ) -> Result<Digest> {
        let options = WriterOptions { reference: data.to_owned(), ..WriterOptions::default() };
        let mut writer = self.db.content().writer(ctx, options).await?;
        writer.write(Bytes::copy_from_slice(data.as_bytes())).await?;
        writer.commit(data.len() as u64, None, map(labels)).await
    }

    pub(crate) async fn has_blob(&self, ctx: &Context, digest: &Digest) -> bool {
        present(self.db.content().info(ctx, digest).await)
    }

    /// Whether the bytes are on disk.
    pub(crate) async fn stored(&self, digest: &Digest) -> bool {
        present(self.content.info(digest).await)
    }

    /// Where the backend keeps a blob.
    pub(crate) fn blob_path(&self, digest: &Digest) -> std::path::PathBuf {
        self.dir.path().join("content/blobs/sha256").join(digest.hex())
    }

    pub(crate) async fn image(&self, ctx: &Context, name: &str, target: &Digest) -> Image {
        let image = Image::new(name, Descriptor::new(MANIFEST, target.clone(), 7));
        self.db.images().create(ctx, image, None).await.unwrap()
    }

    pub(crate) async fn remove_image(&self, ctx: &Context, name: &str) {
        let options = ImageDelete { synchronous: true, ..ImageDelete::default() };
        self.db.images().delete(ctx, name, options).await.unwrap();
    }

    /// A committed snapshot.
    pub(crate) async fn layer(&self, ctx: &Context, name: &str, parent: Option<&str>) {
        let sn = self.db.snapshotter(SN).unwrap();
        let key = format!("{name}-key");
        sn.prepare(ctx, &key, parent, Labels::new()).await.unwrap();
        sn.commit(ctx, name, &key, gantry_snapshots::CommitOptions::default()).await.unwrap();
    }

    pub(crate) async fn has_snapshot(&self, ctx: &Context, key: &str) -> bool {
        present(self.db.snapshotter(SN).unwrap().stat(ctx, key).await)
    }

    /// How many snapshots the backend holds.
    pub(crate) async fn native_count(&self) -> usize {
        let mut count = 0;
        let count_one = &mut |_| {
            count += 1;
            Ok(())
        };
        self.native.walk(count_one).await.unwrap();
        count
    }

    pub(crate) async fn collect(&self) -> gantry_metadata::GcStats {
        self.db.gc().run().await.unwrap()
    }
}

pub(crate) fn ctx(namespace: &str) -> Context {
    Context::new(Namespace::new(namespace).unwrap())
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn list(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|p| (*p).to_owned()).collect()
}

pub(crate) fn container(id: &str) -> Container {
    let mut container = Container::new(id);
    container.runtime.name = "io.containerd.runc.v2".to_owned();
    container
}

pub(crate) fn resource(kind: &str, id: &str) -> Resource {
    Resource { kind: kind.to_owned(), id: id.to_owned() }
}

#[track_caller]
pub(crate) fn fails<T: std::fmt::Debug>(result: Result<T>, class: Class) -> Error {
    let err = result.unwrap_err();
    assert_eq!(err.class(), class, "{err}");
    err
}

#[track_caller]
fn present<T>(result: Result<T>) -> bool {
    match result {
        Ok(_) => true,
        Err(err) => {
            assert!(err.is_not_found(), "{err}");
            false
        }
    }
}
