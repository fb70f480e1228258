//! Opening what is kept on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_content::LocalStore;
use gantry_errdefs::{Result, ResultExt as _};
use gantry_events::Exchange;
use gantry_metadata::{Db, ExchangeSink, GcConfig, Options, SharingPolicy};
use gantry_services::encode_event;
use gantry_snapshots::{Native, NativeConfig, Overlayfs, OverlayfsConfig, Snapshotter};
use gantry_store::{RedbStore, Store};
use tracing::warn;

use crate::config::{Config, ContentSharing};
use crate::proxies::Proxies;

/// Directory of the content store below the root.
pub(crate) const CONTENT_DIR: &str = "io.containerd.content.v1.content";

/// The database below the root.
pub(crate) const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.redb";

/// Plugin type of snapshotters.
pub(crate) const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// What one snapshotter turned out to be, for introspection.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotterReport {
    pub(crate) name: &'static str,
    pub(crate) root: PathBuf,
    pub(crate) capabilities: Vec<String>,
    pub(crate) error: Option<String>,
}

/// The open stores.
#[derive(Debug)]
pub(crate) struct Stores {
    pub(crate) db: Db,
    /// The database below `db`; the last one to let go closes it.
    pub(crate) database: Arc<RedbStore>,
    pub(crate) snapshotters: Vec<SnapshotterReport>,
}

/// Opens everything below the configured root. Blocks.
///
/// # Errors
/// What the content store or the database says; a snapshotter that cannot work here is reported
/// and left out.
pub(crate) fn open(config: &Config, exchange: &Exchange, proxies: &Proxies) -> Result<Stores> {
    let database = config.root.join(DATABASE);
    let dir = database.parent().unwrap_or(&config.root);
    crate::dirs::make_private(dir)?;
    if config.plugins.metadata.no_sync {
        warn!("no_sync is ignored: every acknowledged change is made durable");
    }
    let database = Arc::new(RedbStore::open(&database, &Default::default())?);
    let store: Arc<dyn Store> = database.clone();
    let content: Arc<dyn gantry_content::Store> = match &proxies.content {
        Some(proxy) => Arc::clone(proxy),
        None => Arc::new(LocalStore::open(config.root.join(CONTENT_DIR))?),
    };
    let mut options = Options::new(Arc::clone(&store), content);
    options.policy = match config.plugins.metadata.content_sharing_policy {
        ContentSharing::Shared => SharingPolicy::Shared,
        ContentSharing::Isolated => SharingPolicy::Isolated,
    };
    options.events = ExchangeSink::new(exchange.clone(), encode_event);
    options.gc = gc_config(config);
    let mut reports = Vec::new();
    options.snapshotters = open_snapshotters(config, &store, &mut reports);
    for (name, proxy) in &proxies.snapshotters {
        options.snapshotters.insert(name.clone(), Arc::clone(proxy) as Arc<dyn Snapshotter>);
    }
    let db = Db::open(options)?;
    for proxy in proxies.snapshotters.values() {
        proxy.set_namespaces(Box::new(db.namespace_names()));
    }
    Ok(Stores { db, database, snapshotters: reports })
}

fn gc_config(config: &Config) -> GcConfig {
    let gc = &config.plugins.gc;
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    GcConfig {
        pause_threshold: gc.pause_threshold,
        deletion_threshold: count(gc.deletion_threshold),
        mutation_threshold: count(gc.mutation_threshold),
        schedule_delay: gc.schedule_delay.duration(),
        startup_delay: gc.startup_delay.duration(),
    }
}

fn open_snapshotters(
    config: &Config,
    store: &Arc<dyn Store>,
    reports: &mut Vec<SnapshotterReport>,
) -> BTreeMap<String, Arc<dyn Snapshotter>> {
    let mut open: BTreeMap<String, Arc<dyn Snapshotter>> = BTreeMap::new();
    let overlayfs = &config.plugins.overlayfs;
    let settings = OverlayfsConfig {
        mount_options: overlayfs.mount_options.clone(),
        upperdir_label: overlayfs.upperdir_label,
        sync_remove: overlayfs.sync_remove,
        slow_chown: overlayfs.slow_chown,
    };
    let root = snapshotter_root(config, "overlayfs", Path::new(&overlayfs.root_path));
    if !config.is_disabled(SNAPSHOTTER, "overlayfs") {
        let opened = prepare(&root)
            .and_then(|()| Overlayfs::open(&root, settings, Arc::clone(store)))
            .map(|s| (s.capabilities(), Arc::new(s) as Arc<dyn Snapshotter>));
        add("overlayfs", root, opened, &mut open, reports);
    }
    let root = snapshotter_root(config, "native", &config.plugins.native.root_path);
    if !config.is_disabled(SNAPSHOTTER, "native") {
        let opened = prepare(&root)
            .and_then(|()| Native::open(&root, NativeConfig::default(), Arc::clone(store)))
            .map(|s| (Vec::new(), Arc::new(s) as Arc<dyn Snapshotter>));
        add("native", root, opened, &mut open, reports);
    }
    open
}

fn snapshotter_root(config: &Config, name: &str, configured: &Path) -> PathBuf {
    if configured.as_os_str().is_empty() {
        config.root.join(format!("{SNAPSHOTTER}.{name}"))
    } else {
        configured.to_owned()
    }
}

fn prepare(root: &Path) -> Result<()> {
    std::fs::create_dir_all(root).context(|| root.display().to_string())
}

type Opened = Result<(Vec<String>, Arc<dyn Snapshotter>)>;

fn add(
    name: &'static str,
    root: PathBuf,
    opened: Opened,
    open: &mut BTreeMap<String, Arc<dyn Snapshotter>>,
    reports: &mut Vec<SnapshotterReport>,
) {
    let mut report = SnapshotterReport { name, root, capabilities: Vec::new(), error: None };
    match opened {
        Ok((capabilities, snapshotter)) => {
            report.capabilities = capabilities;
            open.insert(name.to_owned(), snapshotter);
        }
        Err(e) => {
            warn!(snapshotter = name, error = %e, "not available");
            report.error = Some(e.text());
        }
    }
    reports.push(report);
}
