//! A store with content and snapshotters in a directory of its own, and images made by hand.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gantry_archive::tar;
use gantry_content::{LocalStore, WriterOptions};
use gantry_core::image::chain_ids;
use gantry_core::{Context, Descriptor, Digest, Labels, Namespace, media_types};
use gantry_images::{Differ, Unpacker};
use gantry_metadata::{Db, Options};
use gantry_mount::{Mount, TempMount, TempRoot};
use gantry_snapshots::{Native, NativeConfig, Overlayfs, OverlayfsConfig, Snapshotter};
use gantry_store::MemStore;

/// Everything a test needs; gone when dropped.
pub(crate) struct Fixture {
    pub(crate) db: Db,
    pub(crate) ctx: Context,
    pub(crate) unpacker: Unpacker,
    pub(crate) temp: TempRoot,
    /// A tmpfs, since the directory for temporary files may be an overlay itself.
    disk: Option<TempMount>,
    _dir: tempfile::TempDir,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.disk.take());
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let temp = TempRoot::open(dir.path().join("mounts")).unwrap();
        let disk = temp.mount(&[Mount::new("tmpfs", "tmpfs", ["mode=0755"])]).unwrap();
        let root = disk.path();
        let store = Arc::new(MemStore::new());
        let overlay =
            Overlayfs::open(root.join("overlayfs"), OverlayfsConfig::default(), store.clone());
        let native = Native::open(root.join("native"), NativeConfig::default(), store.clone());
        let content = LocalStore::open(root.join("content")).unwrap();
        let mut options = Options::new(store, Arc::new(content));
        let snapshotters: [(&str, Arc<dyn Snapshotter>); 2] =
            [("overlayfs", Arc::new(overlay.unwrap())), ("native", Arc::new(native.unwrap()))];
        options.snapshotters =
            snapshotters.into_iter().map(|(n, s)| (n.to_owned(), s)).collect::<BTreeMap<_, _>>();
        let db = Db::open(options).unwrap();
        let unpacker = Unpacker::new(db.clone(), Differ::new(db.clone(), temp.clone()));
        let ctx = Context::new(Namespace::new("test").unwrap());
        Self { db, ctx, unpacker, temp, disk: Some(disk), _dir: dir }
    }

    /// The directory that everything is stored in.
    pub(crate) fn root(&self) -> &Path {
        self.disk.as_ref().unwrap().path()
    }

    /// Stores a blob.
    pub(crate) async fn put(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::of(bytes);
        let options =
            WriterOptions { reference: format!("put-{digest}"), total: 0, expected: None };
        let mut writer = self.db.content().writer(&self.ctx, options).await.unwrap();
        writer.write(bytes.to_vec().into()).await.unwrap();
        let committed = writer.commit(0, None, Labels::new()).await;
        assert!(committed.as_ref().is_ok() || committed.unwrap_err().is_already_exists());
        Descriptor::new(media_type, digest, i64::try_from(bytes.len()).unwrap())
    }

    /// Stores an image of layers given as plain tars, packed as gzip.
    pub(crate) async fn image(&self, layers: &[Vec<u8>]) -> Image {
        let image = Image::new(layers);
        for (media_type, bytes) in &image.blobs {
            self.put(media_type, bytes).await;
        }
        image
    }

    /// What is visible under a chain ID.
    pub(crate) async fn tree(
        &self,
        snapshotter: &str,
        chain_id: &Digest,
    ) -> BTreeMap<String, String> {
        let snapshots = self.db.snapshotter(snapshotter).unwrap();
        let key = format!("look-{chain_id}");
        let mounts =
            snapshots.view(&self.ctx, &key, Some(chain_id.as_str()), Labels::new()).await.unwrap();
        let mounted = self.temp.mount_readonly(&mounts).unwrap();
        let found = tree(mounted.path());
        mounted.unmount().unwrap();
        snapshots.remove(&self.ctx, &key).await.unwrap();
        found
    }

    /// Keys of all snapshots.
    pub(crate) async fn snapshots(&self, snapshotter: &str) -> Vec<String> {
        let snapshots = self.db.snapshotter(snapshotter).unwrap();
        let all = snapshots.list(&self.ctx, &[]).await.unwrap();
        all.into_iter().map(|i| i.name).collect()
    }
}

/// Files by path with their content; directories end in a slash.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                found.insert(format!("{name}/"), String::new());
                todo.push(path);
            } else {
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// A plain tar of files.
pub(crate) fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in files {
        member(&mut out, name, data.as_bytes());
    }
    out.extend_from_slice(&tar::END);
    out
}

/// Adds a file to a tar without its end.
pub(crate) fn member(out: &mut Vec<u8>, name: &str, data: &[u8]) {
    out.extend(tar::file_header(name, data.len() as u64));
    out.extend_from_slice(data);
    out.extend_from_slice(tar::padding(data.len() as u64));
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out =
        gantry_archive::Compressor::new(Vec::new(), gantry_archive::Compression::Gzip).unwrap();
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// An image as its blobs.
pub(crate) struct Image {
    pub(crate) manifest: Descriptor,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) chain: Vec<Digest>,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) blobs: Vec<(String, Vec<u8>)>,
}

impl Image {
    pub(crate) fn new(layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
        Self::with_diff_ids(layers, diff_ids)
    }

    pub(crate) fn with_diff_ids(layers: &[Vec<u8>], diff_ids: Vec<Digest>) -> Self {
        let mut blobs = Vec::new();
        let mut put = |media_type: &str, bytes: Vec<u8>| {
            let size = i64::try_from(bytes.len()).unwrap();
            let descriptor = Descriptor::new(media_type, Digest::of(&bytes), size);
            blobs.push((media_type.to_owned(), bytes));
            descriptor
        };
        let layers: Vec<Descriptor> =
            layers.iter().map(|l| put(media_types::OCI_LAYER_GZIP, gzip(l))).collect();
        let platform = gantry_core::platforms::default();
        let config = serde_json::json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = put(media_types::OCI_CONFIG, serde_json::to_vec(&config).unwrap());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": media_types::OCI_MANIFEST,
            "config": config,
            "layers": layers,
        });
        let manifest = put(media_types::OCI_MANIFEST, serde_json::to_vec(&manifest).unwrap());
        let chain = chain_ids(&diff_ids);
        Self { manifest, config, layers, chain, diff_ids, blobs }
    }
}
