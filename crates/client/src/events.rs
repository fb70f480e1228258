//! Events.

use std::pin::Pin;
use std::time::SystemTime;

use gantry_api::containerd::services::events::v1 as wire;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::types::Envelope;
use gantry_core::Any;
use gantry_errdefs::Result;
use tonic::Streaming;

use crate::client::{handle, service};
use crate::convert::{any, any_out, status, time};

handle! {
    /// The events service.
    Events, events
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub timestamp: SystemTime,
    /// In which namespace.
    pub namespace: String,
    /// What, as a path: `/tasks/exit`.
    pub topic: String,
    /// The particulars, a message such as `containerd.events.TaskExit`.
    pub payload: Any,
}

/// Events as they happen, from the subscription on.
pub struct EventStream {
    state: State,
}

/// Where a subscription is. Some daemons answer with the first event only, so the answer is
/// awaited together with that.
enum State {
    Opening(Pin<Box<dyn Future<Output = Result<Streaming<Envelope>>> + Send>>),
    Open(Box<Streaming<Envelope>>),
    Closed,
}

impl Events {
    /// Subscribes to the events that match any of `filters` (fields `namespace`, `topic`,
    /// `event.<field>`), of every namespace; all events when there are none.
    ///
    /// Everything that happens after this returns is seen.
    ///
    /// # Errors
    /// Unavailable; an error for a bad filter, which some daemons tell with the first
    /// [`EventStream::next`] only.
    pub async fn subscribe(&self, filters: &[String]) -> Result<EventStream> {
        let request = self.client.request(wire::SubscribeRequest { filters: filters.to_vec() });
        let mut service = service!(self.client, EventsClient);
        let mut opening: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(
                async move { Ok(service.subscribe(request).await.map_err(status)?.into_inner()) },
            );
        // One round trip behind the subscription on the same connection: when it is back, the
        // daemon has seen the subscription too.
        tokio::select! {
            biased;
            stream = &mut opening => Ok(EventStream { state: State::Open(Box::new(stream?)) }),
            version = self.client.version() => {
                version?;
                Ok(EventStream { state: State::Opening(opening) })
            }
        }
    }

    /// Publishes an event in the client's namespace.
    ///
    /// # Errors
    /// InvalidArgument for a topic that is not a path.
    pub async fn publish(&self, topic: &str, payload: &Any) -> Result<()> {
        let request =
            wire::PublishRequest { topic: topic.to_owned(), event: Some(any_out(payload)) };
        service!(self.client, EventsClient)
            .publish(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }
}

impl EventStream {
    /// The next event; None when the daemon ends the stream.
    ///
    /// # Errors
    /// Unavailable when the daemon goes away; ResourceExhausted when this subscriber is too slow.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        if let State::Opening(opening) = &mut self.state {
            match opening.await {
                Ok(stream) => self.state = State::Open(Box::new(stream)),
                Err(e) => {
                    self.state = State::Closed;
                    return Err(e);
                }
            }
        }
        let State::Open(stream) = &mut self.state else { return Ok(None) };
        let envelope = stream.message().await.map_err(status)?;
        Ok(envelope.map(|e| Event {
            timestamp: time(e.timestamp),
            namespace: e.namespace,
            topic: e.topic,
            payload: any(e.event.unwrap_or_default()),
        }))
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl Event {
    /// The particulars as JSON with the field names of the messages, empty fields left out; an
    /// unknown type gives its URL.
    pub fn payload_json(&self) -> serde_json::Value {
        crate::events_json::render(&self.payload)
    }
}
