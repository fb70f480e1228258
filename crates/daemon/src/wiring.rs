//! Which parts there are and who knows whom.

use std::sync::Arc;

use gantry_errdefs::Result;
use gantry_events::Exchange;
use gantry_services as services;
use gantry_services::{EventFields, Plugin, Streams};
use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::{Config, MESSAGE_LEN_MAX};
use crate::{identity, plugins};

/// Everything that serves requests.
#[derive(Debug)]
pub(crate) struct Parts {
    uuid: String,
    exchange: Exchange,
    streams: Streams,
    plugins: Arc<[Plugin]>,
    serving: watch::Receiver<bool>,
}

impl Parts {
    /// Opens the stores below the configured root.
    ///
    /// # Errors
    /// What the first part that cannot start says.
    pub(crate) async fn open(
        config: &Config,
        _temp: gantry_mount::TempRoot,
        serving: watch::Receiver<bool>,
        _stop: watch::Receiver<bool>,
    ) -> Result<Self> {
        Ok(Self {
            uuid: identity::load_or_create(&config.root)?,
            exchange: Exchange::new(Arc::new(EventFields)),
            streams: Streams::default(),
            plugins: plugins::list(config).into(),
            serving,
        })
    }

    /// Finds the containers that lived on.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) async fn recover(&self) -> Result<()> {
        Ok(())
    }

    /// Ends background work.
    pub(crate) async fn close(self) {}
}

/// The ttrpc server for shims.
pub(crate) fn shim_server(parts: &Parts) -> gantry_ttrpc::Server {
    gantry_ttrpc::Server::builder().service(services::shim_events(parts.exchange.clone())).build()
}

/// Every gRPC service.
pub(crate) fn routes(parts: &Parts) -> Routes {
    use gantry_api::containerd::services as api;
    macro_rules! limited {
        ($server:expr) => {
            $server
                .max_decoding_message_size(MESSAGE_LEN_MAX)
                .max_encoding_message_size(MESSAGE_LEN_MAX)
        };
    }
    let version = services::VersionService::new(services::COMPAT_VERSION, revision());
    Routes::default()
        .add_service(limited!(api::version::v1::version_server::VersionServer::new(version)))
        .add_service(limited!(gantry_api::grpc::health::v1::health_server::HealthServer::new(
            services::HealthService::new(parts.serving.clone())
        )))
        .add_service(limited!(
            api::introspection::v1::introspection_server::IntrospectionServer::new(
                services::IntrospectionService::new(parts.uuid.clone(), parts.plugins.clone())
            )
        ))
        .add_service(limited!(api::events::v1::events_server::EventsServer::new(
            services::EventsService::new(parts.exchange.clone())
        )))
        .add_service(limited!(api::streaming::v1::streaming_server::StreamingServer::new(
            services::StreamingService::new(parts.streams.clone())
        )))
}

fn revision() -> &'static str {
    option_env!("GANTRY_REVISION").unwrap_or("unknown")
}
