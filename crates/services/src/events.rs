//! `containerd.services.events.v1`. Its ttrpc twin for shims is the runtime's.

use std::time::SystemTime;

use futures_util::stream;
use gantry_api::containerd::services::events::v1 as wire;
use gantry_api::containerd::services::events::v1::events_server::Events;
use gantry_api::containerd::types;
use gantry_core::Namespace;
use gantry_errdefs::{Error, Result};
use gantry_events::{Envelope, Exchange};
use tonic::{Request, Response, Status};

use crate::stream::Answers;
use crate::{call, convert};

/// Publishes and distributes events.
#[derive(Clone, Debug)]
pub struct EventsService {
    exchange: Exchange,
}

impl EventsService {
    /// A service over `exchange`.
    pub fn new(exchange: Exchange) -> Self {
        Self { exchange }
    }

    fn forward_envelope(&self, envelope: Option<types::Envelope>) -> Result<()> {
        let envelope = call::required(envelope, "envelope")?;
        self.exchange.forward(Envelope {
            timestamp: envelope.timestamp.map_or(SystemTime::UNIX_EPOCH, convert::time),
            namespace: Namespace::new(envelope.namespace)?,
            topic: envelope.topic,
            event: envelope.event.map(convert::any).unwrap_or_default(),
        })
    }
}

fn to_wire(envelope: &Envelope) -> types::Envelope {
    types::Envelope {
        timestamp: convert::time_to_wire(envelope.timestamp),
        namespace: envelope.namespace.to_string(),
        topic: envelope.topic.clone(),
        event: Some(convert::any_to_wire(envelope.event.clone())),
    }
}

#[tonic::async_trait]
impl Events for EventsService {
    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let event = request.event.map(convert::any).unwrap_or_default();
        self.exchange.publish(&ctx.namespace, &request.topic, event)?;
        Ok(Response::new(()))
    }

    async fn forward(
        &self,
        request: Request<wire::ForwardRequest>,
    ) -> Result<Response<()>, Status> {
        self.forward_envelope(request.into_inner().envelope)?;
        Ok(Response::new(()))
    }

    type SubscribeStream = Answers<types::Envelope>;

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filters = request.into_inner().filters;
        let subscription = self.exchange.subscribe(&filters).map_err(|e| {
            // Clients know a bad filter of this call as Unknown.
            if e.is_invalid_argument() { Error::unknown(e.text()) } else { e }
        })?;
        let events = stream::unfold(subscription, |mut subscription| async move {
            let next = subscription.next().await?;
            Some((next.map(|e| to_wire(&e)).map_err(Status::from), subscription))
        });
        Ok(Response::new(Box::pin(events)))
    }
}
