//! Which parts there are and who knows whom.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::containerd::services as api;
use gantry_api::containerd::services::events::ttrpc::v1::events_ttrpc;
use gantry_api::gantry::services::doctor::v1::doctor_server::DoctorServer;
use gantry_api::gantry::services::documents::v1::documents_server::DocumentsServer;
use gantry_api::gantry::services::shims::v1::shims_server;
use gantry_core::deadlines;
use gantry_doctor::{Doctor, Unclean};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_events::Exchange;
use gantry_images::{Differ, Differs, Transfer, Verifiers};
use gantry_metadata::Db;
use gantry_mount::TempRoot;
use gantry_mounts::Activations;
use gantry_proxy::Plugin as Connection;
use gantry_restart::Monitor;
use gantry_runtime::plugin::{EventSink, Runtime};
use gantry_runtime::{EventService, Manager, Sandboxes};
use gantry_services as services;
use gantry_services::{Calls, EventFields, Plugin, Streams};
use gantry_snapshots::Snapshotter;
use gantry_store::RedbStore;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::config::{Config, MESSAGE_LEN_MAX};
use crate::imaging::Imaging;
use crate::marker::Marker;
use crate::proxies::Proxies;
use crate::{identity, plugins, shims, stores};

/// Connections of shims: each keeps one for its events, and a large host has some thousand pods.
const SHIM_CONNECTIONS_MAX: usize = 16384;

/// Directory of activated mounts below the state; containerd's own place.
const MOUNTS_DIR: &str = "io.containerd.mount-manager.v1.bolt";

/// Directory of the exchange below the state.
const EVENTS_DIR: &str = "io.containerd.event.v1.exchange";

/// How long an ending daemon waits for whoever still uses its database.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// How often it looks whether its database is still in use.
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// Everything that serves requests.
pub(crate) struct Parts {
    uuid: String,
    exchange: Exchange,
    streams: Streams,
    plugins: Arc<[Plugin]>,
    serving: watch::Receiver<bool>,
    db: Db,
    database: Arc<RedbStore>,
    /// Those built in, to be closed at the end.
    snapshotters: Vec<Arc<dyn Snapshotter>>,
    /// Starts shims and takes their events.
    runtime: Manager,
    /// What the tasks service runs tasks by: `runtime`, or the embedder's own.
    tasks: Arc<dyn Runtime>,
    sandboxes: Sandboxes,
    sandboxers: BTreeMap<String, Connection>,
    temp: TempRoot,
    activations: Activations,
    differ: Differ,
    differs: Differs,
    transfer: Transfer,
    verifiers: Verifiers,
    sync_fs: bool,
    doctor: Doctor,
    marker: Arc<Marker>,
    unclean: Option<Unclean>,
    /// What the last run left is being verified.
    verifying: Option<JoinHandle<()>>,
    restart: Option<gantry_restart::Config>,
    upgrade_shims: bool,
    monitor: Option<Monitor>,
}

impl Parts {
    /// Opens the stores below the configured root.
    ///
    /// # Errors
    /// What the first part that cannot start says; FailedPrecondition when a required plugin is
    /// not there.
    pub(crate) async fn open(
        config: &Config,
        own_runtime: Option<Arc<dyn Runtime>>,
        temp: TempRoot,
        serving: watch::Receiver<bool>,
    ) -> Result<Self> {
        let opening = config.clone();
        let (exchange, uuid, stores, runtime, proxies, activations, marked) =
            tokio::task::spawn_blocking(move || {
                let marked = Marker::set(&opening.root)?;
                let events = exchange(&opening)?;
                let uuid = identity::load_or_create(&opening.root)?;
                let proxies = Proxies::new(&opening)?;
                let stores = stores::open(&opening, &events, &proxies)?;
                let runtime = Manager::open(shims::config(&opening), events.clone())?;
                let mounts = opening.state.join(MOUNTS_DIR);
                let activations = Activations::open(&mounts, stores.db.clone())?;
                Ok::<_, Error>((events, uuid, stores, runtime, proxies, activations, marked))
            })
            .await
            .map_err(|e| Error::internal(format!("start: {e}")))??;
        let (marker, unclean) = marked;
        recover(&stores.db, unclean.is_some()).await;
        let Imaging { differ, differs, unpacker, transfer, verifiers } =
            Imaging::new(config, &stores.db, temp.clone(), &proxies)?;
        let doctor = Doctor::new(stores.db.clone(), unpacker, runtime.clone(), temp.clone());
        let plugins = plugins::list(config, &stores.reports, &proxies);
        plugins::check_required(config, &plugins)?;
        let tasks = own_runtime.unwrap_or_else(|| Arc::new(runtime.clone()));
        tasks.events(EventSink::new(exchange.clone()));
        Ok(Self {
            uuid,
            exchange,
            streams: Streams::default(),
            plugins: plugins.into(),
            serving,
            db: stores.db,
            database: stores.database,
            snapshotters: stores.snapshotters,
            runtime,
            tasks,
            sandboxes: Sandboxes::new(shims::config(config)),
            sandboxers: proxies.sandboxers,
            activations,
            temp,
            differ,
            differs,
            transfer,
            verifiers,
            sync_fs: config.plugins.diff.sync_fs,
            doctor,
            marker: Arc::new(marker),
            unclean,
            verifying: None,
            restart: restart(config),
            upgrade_shims: config.plugins.shim.upgrade_on_start,
            monitor: None,
        })
    }

    /// Starts background work: from here on garbage is collected, what an unclean end may have
    /// damaged is verified, and containers that ask for it are started again.
    pub(crate) fn start(&mut self) {
        self.exchange.start();
        self.db.gc().start();
        self.activations.start();
        self.streams.start(&self.db);
        let (doctor, marker, unclean) =
            (self.doctor.clone(), Arc::clone(&self.marker), self.unclean);
        self.verifying = Some(tokio::spawn(async move {
            if doctor.after_start(unclean).await && unclean.is_some() {
                let _ = tokio::task::spawn_blocking(move || marker.verified()).await;
            }
        }));
        self.monitor = self.restart.map(|config| {
            Monitor::start(self.db.clone(), self.tasks.clone(), self.exchange.clone(), config)
        });
        if self.upgrade_shims {
            tokio::spawn(shims::upgrade(self.runtime.clone()));
        }
    }

    /// Ends background work and closes the database. Resolves when nothing below the root is
    /// open any more.
    pub(crate) async fn close(self) {
        let (database, marker) = (self.database, self.marker);
        let verified = match self.verifying {
            // Cut short it begins again at the next start.
            Some(verifying) if !verifying.is_finished() => {
                verifying.abort();
                let _ = verifying.await;
                self.unclean.is_none()
            }
            _ => true,
        };
        for snapshotter in &self.snapshotters {
            if let Err(e) = snapshotter.close().await {
                tracing::warn!(error = %e, "while closing a snapshotter");
            }
        }
        drop(self.snapshotters);
        drop((self.monitor, self.db, self.activations, self.runtime, self.tasks));
        drop((self.differ, self.differs, self.transfer, self.doctor));
        // A collection or a task that is being deleted may still be at it.
        let alone = async {
            while Arc::strong_count(&database) > 1 {
                tokio::time::sleep(CLOSE_POLL).await;
            }
        };
        if tokio::time::timeout(CLOSE_MAX, alone).await.is_err() {
            tracing::warn!("background work did not end in time: the database is closed under it");
        }
        // Closing writes out what is queued.
        let closed = tokio::task::spawn_blocking(move || {
            database.close();
            if verified {
                marker.clear();
            }
        });
        if let Err(e) = closed.await {
            tracing::warn!(error = %e, "while closing the database");
        }
    }
}

/// The exchange, with what clients of an earlier daemon have not been told.
fn exchange(config: &Config) -> Result<Exchange> {
    let dir = config.state.join(EVENTS_DIR);
    std::fs::create_dir_all(&dir).context(|| dir.display().to_string())?;
    Exchange::open(Arc::new(EventFields), &dir.join("recovered"))
}

/// How the restart monitor is to behave; none when it is switched off.
fn restart(config: &Config) -> Option<gantry_restart::Config> {
    let (kind, id) = plugins::RESTART;
    let interval = config.plugins.restart.interval.duration();
    (!config.is_disabled(kind, id)).then_some(gantry_restart::Config { interval })
}

/// Matches content with its records. A content plugin that does not answer is not waited for.
async fn recover(db: &Db, unclean: bool) {
    let gc = db.gc();
    let recovered = tokio::time::timeout(deadlines::PLUGIN_COLLECT, gc.recover(unclean)).await;
    let why = match recovered {
        Ok(Ok(_)) => return,
        Ok(Err(err)) => err.text(),
        Err(_) => "the content store does not answer".to_owned(),
    };
    tracing::error!("content is not matched with its records: {why}");
}

/// The ttrpc server for shims.
pub(crate) fn shim_server(parts: &Parts) -> gantry_ttrpc::Server {
    let events = EventService::new(parts.runtime.clone());
    gantry_ttrpc::Server::builder()
        .connections_max(SHIM_CONNECTIONS_MAX)
        .service(events_ttrpc::EventsServer::new(Arc::new(events)))
        .build()
}

/// A service with the message limits of every service.
macro_rules! limited {
    ($server:expr) => {
        $server
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX)
    };
}

/// Every gRPC service.
pub(crate) fn routes(parts: &Parts) -> Routes {
    about_the_daemon(records(Routes::default(), parts), parts)
        .add_service(limited!(api::diff::v1::diff_server::DiffServer::new(
            services::DiffService::new(parts.differs.clone(), parts.sync_fs)
        )))
        .add_service(limited!(api::tasks::v1::tasks_server::TasksServer::new(
            services::TasksService::new(
                parts.db.clone(),
                Arc::clone(&parts.tasks),
                parts.differ.clone(),
                parts.temp.clone()
            )
        )))
        .add_service(limited!(shims_server::ShimsServer::new(services::ShimsService::new(
            parts.runtime.clone()
        ))))
        .add_service(limited!(api::events::v1::events_server::EventsServer::new(
            services::EventsService::new(
                parts.exchange.clone(),
                EventService::new(parts.runtime.clone())
            )
        )))
        .add_service(limited!(api::streaming::v1::streaming_server::StreamingServer::new(
            services::StreamingService::new(parts.streams.clone(), parts.db.clone())
        )))
        .add_service(limited!(api::transfer::v1::transfer_server::TransferServer::new(
            services::TransferService::new(parts.transfer.clone(), parts.streams.clone())
        )))
        .add_service(limited!(api::sandbox::v1::controller_server::ControllerServer::new(
            services::SandboxControllerService::new(
                parts.db.clone(),
                parts.exchange.clone(),
                parts.sandboxes.clone(),
                parts.sandboxers.clone()
            )
        )))
        .add_service(limited!(DoctorServer::new(services::DoctorService::new(
            parts.doctor.clone()
        ))))
        .add_service(limited!(DocumentsServer::new(services::DocumentsService::new(
            parts.db.clone()
        ))))
        .add_service(limited!(api::mounts::v1::mounts_server::MountsServer::new(
            services::MountsService::new(parts.activations.clone())
        )))
}

/// What the metrics listener shows.
pub(crate) fn metrics(parts: &Parts, calls: Option<Calls>) -> services::Metrics {
    let (db, runtime) = (parts.db.clone(), Arc::clone(&parts.tasks));
    services::Metrics::new(db, runtime, calls, services::COMPAT_VERSION, revision())
}

/// What calls are counted into; nothing when nobody can ask.
pub(crate) fn calls(config: &Config) -> Option<Calls> {
    let metrics = &config.plugins.metrics;
    (!metrics.address.is_empty()).then(|| Calls::new(metrics.grpc_histogram))
}

fn about_the_daemon(routes: Routes, parts: &Parts) -> Routes {
    let version = services::VersionService::new(services::COMPAT_VERSION, revision());
    let details = services::RuntimeDetails::new(parts.runtime.clone());
    let introspection =
        services::IntrospectionService::new(parts.uuid.clone(), parts.plugins.clone())
            .with_details("io.containerd.runtime.v2", "task", Arc::new(details));
    routes
        .add_service(limited!(api::version::v1::version_server::VersionServer::new(version)))
        .add_service(limited!(gantry_api::grpc::health::v1::health_server::HealthServer::new(
            services::HealthService::new(parts.serving.clone())
        )))
        .add_service(limited!(
            api::introspection::v1::introspection_server::IntrospectionServer::new(introspection)
        ))
}

fn records(routes: Routes, parts: &Parts) -> Routes {
    let db = &parts.db;
    routes
        .add_service(limited!(api::namespaces::v1::namespaces_server::NamespacesServer::new(
            services::NamespacesService::new(db.clone())
        )))
        .add_service(services::WithListing::new(
            limited!(api::containers::v1::containers_server::ContainersServer::new(
                services::ContainersService::new(db.clone())
            )),
            db.clone(),
            MESSAGE_LEN_MAX,
        ))
        .add_service(limited!(api::images::v1::images_server::ImagesServer::new(
            services::ImagesService::new(db.clone(), parts.verifiers.clone())
        )))
        .add_service(limited!(api::leases::v1::leases_server::LeasesServer::new(
            services::LeasesService::new(db.clone())
        )))
        .add_service(limited!(api::content::v1::content_server::ContentServer::new(
            services::ContentService::new(db.clone())
        )))
        .add_service(limited!(api::snapshots::v1::snapshots_server::SnapshotsServer::new(
            services::SnapshotsService::new(db.clone())
        )))
        .add_service(limited!(api::sandbox::v1::store_server::StoreServer::new(
            services::SandboxStoreService::new(db.clone())
        )))
}

fn revision() -> &'static str {
    option_env!("GANTRY_REVISION").unwrap_or("unknown")
}
