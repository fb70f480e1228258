//! Events.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use gantry_api::Shared;
use gantry_api::containerd::services::events::v1 as wire;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::types::Envelope;
use gantry_core::Any;
use gantry_errdefs::Result;
use tonic::Streaming;

use crate::client::{handle, service};
use crate::convert::{any, any_out, is_disconnected, status, time};

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

/// Events as they happen, over restarts of the daemon; see [`Events::follow`].
pub struct EventFollower {
    events: Events,
    filters: Vec<String>,
    /// None while the daemon is away.
    stream: Option<EventStream>,
}

/// What [`EventFollower::next`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Something happened.
    Event(Event),
    /// The daemon went away and came back: look at the state of what matters, for events may
    /// have been missed.
    Resubscribed,
}

/// What the daemon sends.
type Envelopes = Streaming<Shared<Envelope>>;

/// Where a subscription is. Some daemons answer with the first event only, so the answer is
/// awaited together with that.
enum State {
    Opening(Pin<Box<dyn Future<Output = Result<Envelopes>> + Send>>),
    Open(Box<Envelopes>),
    Closed,
}

/// How long a daemon that does not answer a subscription at once may take from having the request
/// to having the subscription. It works on the calls of a connection side by side, so that the
/// answer to a later one proves little; gantryd answers, and is not waited for this long.
const BEGUN_AFTER: Duration = Duration::from_millis(100);

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
        // daemon has the request too, and is about to subscribe.
        let begun = async {
            self.client.version().await?;
            tokio::time::sleep(BEGUN_AFTER).await;
            Ok(())
        };
        tokio::select! {
            biased;
            stream = &mut opening => Ok(EventStream { state: State::Open(Box::new(stream?)) }),
            begun = begun => {
                begun.map(|()| EventStream { state: State::Opening(opening) })
            }
        }
    }

    /// Subscribes as [`Self::subscribe`] does, and again whenever the daemon went away and came
    /// back. What happened in between is not seen: [`Followed::Resubscribed`] says where that is.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub async fn follow(&self, filters: &[String]) -> Result<EventFollower> {
        loop {
            match self.subscribe(filters).await {
                Ok(stream) => {
                    let (events, filters) = (self.clone(), filters.to_vec());
                    return Ok(EventFollower { events, filters, stream: Some(stream) });
                }
                Err(e) => self.client.before_retry(e).await?,
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
        Ok(envelope.map(Shared::into_message).map(|e| Event {
            timestamp: time(e.timestamp),
            namespace: e.namespace,
            topic: e.topic,
            payload: any(e.event.unwrap_or_default()),
        }))
    }
}

impl EventStream {
    /// The events as a stream, which ends with the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event>> + Send {
        futures_util::stream::unfold(Some(self), |stream| async {
            let mut stream = stream?;
            match stream.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(stream))),
                Ok(None) => None,
                Err(e) => Some((Err(e), None)),
            }
        })
    }
}

impl EventFollower {
    /// The next event, or the word that some may have been missed. Waits for a daemon that is
    /// away as long as the client's patience.
    ///
    /// # Errors
    /// Unavailable when the daemon stays away; calling again waits once more.
    /// ResourceExhausted when this subscriber is too slow.
    pub async fn next(&mut self) -> Result<Followed> {
        if let Some(stream) = &mut self.stream {
            match stream.next().await {
                Ok(Some(event)) => return Ok(Followed::Event(event)),
                // A daemon that stops in good order ends its streams.
                Ok(None) => self.stream = None,
                Err(e) if is_disconnected(&e) || e.is_canceled() || e.is_unavailable() => {
                    self.stream = None;
                }
                Err(e) => return Err(e),
            }
        }
        self.events.client.come_back().await.map_err(|e| {
            gantry_errdefs::Error::unavailable(e.message().to_owned()).with_source(e)
        })?;
        let subscribed = self.events.subscribe(&self.filters);
        self.stream = Some(subscribed.await?);
        Ok(Followed::Resubscribed)
    }
}

impl std::fmt::Debug for EventFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventFollower").field("filters", &self.filters).finish_non_exhaustive()
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
