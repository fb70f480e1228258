//! A store with everything a transfer needs, in a temporary directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gantry_content::{LocalStore, WriterOptions};
use gantry_core::{Context, Descriptor, Digest, Labels, Namespace, Reference};
use gantry_images::{
    Differ, ProgressSink, PullOptions, ServedPlatforms, StoreOptions, Transfer, TransferOptions,
    UnpackTarget, Unpacker,
};
use gantry_metadata::{Db, Options};
use gantry_mount::TempRoot;
use gantry_registry::Resolver;
use gantry_snapshots::{
    Erofs, ErofsConfig, Native, NativeConfig, Overlayfs, OverlayfsConfig, Snapshotter,
};
use gantry_store::{RedbStore, Store};
use tempfile::TempDir;

pub(crate) struct Rig {
    /// Kept for as long as the store is used.
    dir: TempDir,
    pub(crate) db: Db,
    pub(crate) transfer: Transfer,
    pub(crate) ctx: Context,
    /// Where tests may mount.
    pub(crate) temp: TempRoot,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|_, _| None)
    }

    /// One with the erofs snapshotter as well, which is to be closed.
    pub(crate) fn with_erofs() -> (Self, Arc<dyn Snapshotter>) {
        let mut opened = None;
        let rig = Self::with(|root, store| {
            let erofs = Erofs::open(root.join("erofs"), ErofsConfig::default(), store);
            let erofs: Arc<dyn Snapshotter> = Arc::new(erofs.unwrap());
            opened = Some(Arc::clone(&erofs));
            Some((Erofs::NAME.to_owned(), erofs))
        });
        (rig, opened.unwrap())
    }

    fn with(
        more: impl FnOnce(&Path, Arc<dyn Store>) -> Option<(String, Arc<dyn Snapshotter>)>,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("gki").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let store: Arc<dyn Store> =
            Arc::new(RedbStore::open(at("meta.db"), &Default::default()).unwrap());
        let content = Arc::new(LocalStore::open(at("content")).unwrap());
        let overlay =
            Overlayfs::open(at("overlay"), OverlayfsConfig::default(), store.clone()).unwrap();
        let native = Native::open(at("native"), NativeConfig::default(), store.clone()).unwrap();
        let mut snapshotters: BTreeMap<String, Arc<dyn Snapshotter>> = BTreeMap::new();
        snapshotters.insert("overlayfs".into(), Arc::new(overlay));
        snapshotters.insert("native".into(), Arc::new(native));
        snapshotters.extend(more(dir.path(), store.clone()));
        let options = Options { snapshotters, ..Options::new(store, content) };
        let db = Db::open(options).unwrap();
        let temp = TempRoot::open(at("mounts")).unwrap();
        let differ = Differ::new(db.clone(), temp.clone());
        let unpacker = Unpacker::new(db.clone(), differ);
        let transfer =
            Transfer::new(db.clone(), unpacker, Resolver::default(), TransferOptions::default());
        let ctx = Context::new(Namespace::new("test").unwrap());
        Self { dir, db, transfer, ctx, temp }
    }

    /// Transfers as by `transfer`, but unpacking to what is served alone.
    pub(crate) fn transfer_that_serves(&self, served: ServedPlatforms) -> Transfer {
        let options = TransferOptions { served, ..TransferOptions::default() };
        let (unpacker, resolver) = (self.transfer.unpacker(), self.transfer.resolver());
        Transfer::new(self.db.clone(), unpacker.clone(), resolver.clone(), options)
    }

    /// Stores a blob.
    pub(crate) async fn put(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::of(bytes);
        let options =
            WriterOptions { reference: format!("put-{digest}"), ..WriterOptions::default() };
        match self.db.content().writer(&self.ctx, options).await {
            Ok(mut writer) => {
                writer.write(bytes.to_vec().into()).await.unwrap();
                let committed = writer.commit(0, None, Labels::new()).await;
                assert!(committed.is_ok() || committed.unwrap_err().is_already_exists());
            }
            Err(err) => assert!(err.is_already_exists(), "{err}"),
        }
        Descriptor::new(media_type, digest, i64::try_from(bytes.len()).unwrap())
    }

    /// Where a part of the store is.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Options that pull `reference` for the host's platform, unpacked to `snapshotters`.
    pub(crate) fn pull_options(&self, reference: &str, snapshotters: &[&str]) -> PullOptions {
        let matcher = gantry_core::platforms::Matcher::host();
        let unpacks = snapshotters
            .iter()
            .map(|name| UnpackTarget { matcher: matcher.clone(), snapshotter: (*name).to_owned() });
        PullOptions {
            reference: Reference::parse(reference).unwrap(),
            resolver: self.transfer.resolver().clone(),
            store: StoreOptions {
                platforms: vec![gantry_core::platforms::default()],
                unpacks: unpacks.collect(),
                ..StoreOptions::named(reference)
            },
            progress: ProgressSink::default(),
        }
    }

    /// Nothing of an operation is left that ended: no leases, no ingests.
    pub(crate) async fn assert_nothing_left(&self) {
        let leases = self.db.leases().list(&self.ctx, &[]).await.unwrap();
        assert!(leases.is_empty(), "leases left: {leases:?}");
    }

    /// Waits for what a cancelled operation still cleans up.
    pub(crate) async fn settle(&self) {
        let snapshots = self.db.snapshotter("overlayfs").unwrap();
        for _ in 0..250 {
            let leases = self.db.leases().list(&self.ctx, &[]).await.unwrap();
            let active = snapshots.list(&self.ctx, &["kind==active".to_owned()]).await.unwrap();
            if leases.is_empty() && active.is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Nothing at all came of an operation: no leases, images, snapshots, and after a collection
    /// no content either.
    pub(crate) async fn assert_untouched(&self) {
        self.assert_nothing_left().await;
        assert!(self.db.images().list(&self.ctx, &[]).await.unwrap().is_empty());
        for name in self.db.snapshotter_names() {
            let snapshots = self.db.snapshotter(&name).unwrap();
            let active = snapshots.list(&self.ctx, &["kind==active".to_owned()]).await.unwrap();
            assert!(active.is_empty(), "snapshots left: {active:?}");
        }
    }
}
