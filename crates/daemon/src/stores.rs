//! Opening what is kept on disk.

use std::sync::Arc;

use gantry_content::LocalStore;
use gantry_errdefs::Result;
use gantry_events::Exchange;
use gantry_metadata::{Db, ExchangeSink, GcConfig, Options, SharingPolicy};
use gantry_services::encode_event;
use gantry_snapshots::Snapshotter;
use gantry_store::{RedbStore, Store};
use tracing::warn;

use crate::config::{Config, ContentSharing};
use crate::proxies::Proxies;
use crate::snapshotters::{self, SnapshotterReport};

/// Directory of the content store below the root.
pub(crate) const CONTENT_DIR: &str = "io.containerd.content.v1.content";

/// The database below the root.
pub(crate) const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.redb";

/// The open stores.
pub(crate) struct Stores {
    pub(crate) db: Db,
    /// The database below `db`; the last one to let go closes it.
    pub(crate) database: Arc<RedbStore>,
    pub(crate) reports: Vec<SnapshotterReport>,
    /// Those built in, to be closed.
    pub(crate) snapshotters: Vec<Arc<dyn Snapshotter>>,
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
    let no_sync = config.plugins.metadata.no_sync;
    if no_sync {
        warn!(
            "no_sync is set: images, containers and everything else that is acknowledged is LOST by \
             a power cut until it happens to be written; only for machines that are thrown away"
        );
    }
    let how = gantry_store::Options { no_sync, ..gantry_store::Options::default() };
    let database = Arc::new(RedbStore::open(&database, &how)?);
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
    let (built_in, reports) = snapshotters::open(config, &store);
    let snapshotters = built_in.values().cloned().collect();
    options.snapshotters = built_in;
    for (name, proxy) in &proxies.snapshotters {
        options.snapshotters.insert(name.clone(), Arc::clone(proxy) as Arc<dyn Snapshotter>);
    }
    let db = Db::open(options)?;
    for proxy in proxies.snapshotters.values() {
        proxy.set_namespaces(Box::new(db.namespace_names()));
    }
    Ok(Stores { db, database, reports, snapshotters })
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
