//! `containerd.services.events.v1`. Its ttrpc twin for shims is the runtime's.

use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream;
use gantry_api::Shared;
use gantry_api::containerd::services::events::v1 as wire;
use gantry_api::containerd::services::events::v1::events_server::Events;
use gantry_api::containerd::types;
use gantry_core::Namespace;
use gantry_errdefs::{Error, Result};
use gantry_events::{Envelope, Exchange, Handed};
use gantry_runtime::EventService as TaskEvents;
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::flushes::Flushes;
use crate::stream::Answers;
use crate::{call, convert};

/// What the topics of tasks begin with.
const TASKS: &str = "/tasks/";

/// Publishes and distributes events.
#[derive(Clone, Debug)]
pub struct EventsService {
    exchange: Exchange,
    tasks: TaskEvents,
}

impl EventsService {
    /// A service over `exchange`; what shims send this way goes through `tasks`, as what they send
    /// over ttrpc does.
    pub fn new(exchange: Exchange, tasks: TaskEvents) -> Self {
        Self { exchange, tasks }
    }

    async fn forward_envelope(&self, envelope: Option<types::Envelope>) -> Result<()> {
        let envelope = call::required(envelope, "envelope")?;
        let envelope = Envelope {
            timestamp: envelope.timestamp.map_or(SystemTime::UNIX_EPOCH, convert::time),
            namespace: Namespace::new(envelope.namespace)?,
            topic: envelope.topic,
            event: envelope.event.map(convert::any).unwrap_or_default(),
        };
        self.take(envelope).await
    }

    async fn take(&self, envelope: Envelope) -> Result<()> {
        if envelope.topic.starts_with(TASKS) {
            return self.tasks.take(envelope).await;
        }
        self.exchange.forward(envelope)
    }
}

fn encode(envelope: &Envelope) -> Bytes {
    let envelope = types::Envelope {
        timestamp: convert::time_to_wire(envelope.timestamp),
        namespace: envelope.namespace.to_string(),
        topic: envelope.topic.clone(),
        event: Some(convert::any_to_wire(envelope.event.clone())),
    };
    envelope.encode_to_vec().into()
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
        let (timestamp, namespace, topic) = (SystemTime::now(), ctx.namespace, request.topic);
        self.take(Envelope { timestamp, namespace, topic, event }).await?;
        Ok(Response::new(()))
    }

    async fn forward(
        &self,
        request: Request<wire::ForwardRequest>,
    ) -> Result<Response<()>, Status> {
        self.forward_envelope(request.into_inner().envelope).await?;
        Ok(Response::new(()))
    }

    type SubscribeStream = Answers<Shared<types::Envelope>>;

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let flushes = request.extensions().get::<Flushes>().cloned();
        let filters = request.into_inner().filters;
        let subscription = self.exchange.subscribe(&filters).map_err(|e| {
            // Clients know a bad filter of this call as Unknown.
            if e.is_invalid_argument() { Error::unknown(e.text()) } else { e }
        })?;
        let events = stream::unfold((subscription, flushes), |(mut subscription, flushes)| async {
            // Asked for the next one: the last is on its way, and there once it is written.
            if let Some(handed) = subscription.handed() {
                let done = |written| {
                    if written {
                        Handed::reached(handed)
                    }
                };
                match &flushes {
                    Some(flushes) => flushes.when_written(done),
                    None => done(true),
                }
            }
            let next = subscription.next().await?;
            Some((
                next.map(|e| Shared::encoded(e.encoded(encode))).map_err(Status::from),
                (subscription, flushes),
            ))
        });
        Ok(Response::new(Box::pin(events)))
    }
}
