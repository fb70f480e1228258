//! Which parts there are and who knows whom.

use std::sync::Arc;

use gantry_api::containerd::services as api;
use gantry_errdefs::{Error, Result};
use gantry_events::Exchange;
use gantry_metadata::Db;
use gantry_mount::TempRoot;
use gantry_services as services;
use gantry_services::{EventFields, Plugin, Streams};
use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::{Config, MESSAGE_LEN_MAX};
use crate::{identity, plugins, stores};

/// Everything that serves requests.
#[derive(Debug)]
pub(crate) struct Parts {
    uuid: String,
    exchange: Exchange,
    streams: Streams,
    plugins: Arc<[Plugin]>,
    serving: watch::Receiver<bool>,
    db: Db,
    temp: TempRoot,
    sync_fs: bool,
}

impl Parts {
    /// Opens the stores below the configured root.
    ///
    /// # Errors
    /// What the first part that cannot start says; FailedPrecondition when a required plugin is
    /// not there.
    pub(crate) async fn open(
        config: &Config,
        temp: TempRoot,
        serving: watch::Receiver<bool>,
    ) -> Result<Self> {
        let exchange = Exchange::new(Arc::new(EventFields));
        let (opening, events) = (config.clone(), exchange.clone());
        let (uuid, stores) = tokio::task::spawn_blocking(move || {
            let uuid = identity::load_or_create(&opening.root)?;
            Ok::<_, Error>((uuid, stores::open(&opening, &events)?))
        })
        .await
        .map_err(|e| Error::internal(format!("start: {e}")))??;
        let plugins = plugins::list(config, &stores.snapshotters);
        plugins::check_required(config, &plugins)?;
        Ok(Self {
            uuid,
            exchange,
            streams: Streams::default(),
            plugins: plugins.into(),
            serving,
            db: stores.db,
            temp,
            sync_fs: config.plugins.diff.sync_fs,
        })
    }

    /// Finds the containers that lived on, and starts background work.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) async fn recover(&self) -> Result<()> {
        self.db.gc().start();
        Ok(())
    }

    /// Ends background work.
    pub(crate) async fn close(self) {}
}

/// The ttrpc server for shims.
pub(crate) fn shim_server(parts: &Parts) -> gantry_ttrpc::Server {
    gantry_ttrpc::Server::builder().service(services::shim_events(parts.exchange.clone())).build()
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
    about_the_daemon(records(Routes::default(), &parts.db), parts)
        .add_service(limited!(api::diff::v1::diff_server::DiffServer::new(
            services::DiffService::new(parts.db.clone(), parts.temp.clone(), parts.sync_fs)
        )))
        .add_service(limited!(api::events::v1::events_server::EventsServer::new(
            services::EventsService::new(parts.exchange.clone())
        )))
        .add_service(limited!(api::streaming::v1::streaming_server::StreamingServer::new(
            services::StreamingService::new(parts.streams.clone())
        )))
        .add_service(limited!(api::sandbox::v1::controller_server::ControllerServer::new(
            services::SandboxControllerService
        )))
        .add_service(limited!(api::mounts::v1::mounts_server::MountsServer::new(
            services::MountsService
        )))
}

fn about_the_daemon(routes: Routes, parts: &Parts) -> Routes {
    let version = services::VersionService::new(services::COMPAT_VERSION, revision());
    routes
        .add_service(limited!(api::version::v1::version_server::VersionServer::new(version)))
        .add_service(limited!(gantry_api::grpc::health::v1::health_server::HealthServer::new(
            services::HealthService::new(parts.serving.clone())
        )))
        .add_service(limited!(
            api::introspection::v1::introspection_server::IntrospectionServer::new(
                services::IntrospectionService::new(parts.uuid.clone(), parts.plugins.clone())
            )
        ))
}

fn records(routes: Routes, db: &Db) -> Routes {
    routes
        .add_service(limited!(api::namespaces::v1::namespaces_server::NamespacesServer::new(
            services::NamespacesService::new(db.clone())
        )))
        .add_service(limited!(api::containers::v1::containers_server::ContainersServer::new(
            services::ContainersService::new(db.clone())
        )))
        .add_service(limited!(api::images::v1::images_server::ImagesServer::new(
            services::ImagesService::new(db.clone())
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
