//! The exchange: one order of events, many bounded subscriptions.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_core::filters::{self, Adaptor, Filter};
use gantry_core::{Any, Namespace};
use gantry_errdefs::{Error, Result};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::validate_topic;

/// Events a subscription may lag behind before it is ended. A container's life is about eight
/// events, so this is a burst of five hundred containers; at some 200 bytes each it bounds a
/// silent reader to about a megabyte.
pub const SUBSCRIBER_QUEUE_LEN: usize = 4096;

/// Subscriptions at one time. Publishing looks at each of them, so their number must be bounded.
pub const SUBSCRIBERS_MAX: usize = 1024;

/// An event with where and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// When it happened.
    pub timestamp: SystemTime,
    /// The namespace it happened in.
    pub namespace: Namespace,
    /// Its topic, such as `/containers/create`.
    pub topic: String,
    /// What happened, as the publisher encoded it.
    pub event: Any,
}

/// Reads fields of encoded events, for filters on `event.<field>`.
pub trait FieldAccess: Send + Sync + 'static {
    /// The field at `path` as text, or None when the event has no such field or its type is
    /// unknown.
    fn field(&self, event: &Any, path: &[&str]) -> Option<String>;
}

/// A [`FieldAccess`] that knows no type.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFields;

impl FieldAccess for NoFields {
    fn field(&self, _event: &Any, _path: &[&str]) -> Option<String> {
        None
    }
}

/// Distributes events. Cheap to clone; clones share their subscribers.
#[derive(Clone)]
pub struct Exchange {
    shared: Arc<Shared>,
}

struct Shared {
    fields: Arc<dyn FieldAccess>,
    /// Held while an event goes to every queue, which makes the one order; nothing below waits.
    subscribers: Mutex<Vec<Subscriber>>,
}

struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Arc<Envelope>>,
    overflowed: Arc<AtomicBool>,
}

impl Exchange {
    /// An exchange without subscribers, whose filters read payloads through `fields`.
    pub fn new(fields: Arc<dyn FieldAccess>) -> Self {
        Self { shared: Arc::new(Shared { fields, subscribers: Mutex::default() }) }
    }

    /// Publishes an event of `namespace` that happens now.
    ///
    /// # Errors
    /// InvalidArgument for a topic that is not of the form `/a/b`.
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: Any) -> Result<()> {
        self.forward(Envelope {
            timestamp: SystemTime::now(),
            namespace: namespace.clone(),
            topic: topic.to_owned(),
            event,
        })
    }

    /// Publishes an event as someone else recorded it.
    ///
    /// # Errors
    /// InvalidArgument for a topic that is not of the form `/a/b`.
    pub fn forward(&self, envelope: Envelope) -> Result<()> {
        validate_topic(&envelope.topic)?;
        self.deliver(Arc::new(envelope));
        Ok(())
    }

    /// Subscribes to the events that match any of `filters` (fields `namespace`, `topic` and
    /// `event.<field>`), or to all when there are none. Events published from now on are seen.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse; ResourceExhausted at
    /// [`SUBSCRIBERS_MAX`].
    pub fn subscribe<S: AsRef<str>>(&self, filters: &[S]) -> Result<Subscription> {
        let filter = filters::parse_all(filters)?;
        let (queue, events) = mpsc::channel(SUBSCRIBER_QUEUE_LEN);
        let overflowed = Arc::new(AtomicBool::new(false));
        let mut subscribers = self.subscribers();
        subscribers.retain(|s| !s.queue.is_closed());
        if subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(Error::resource_exhausted(format!(
                "event subscription: {SUBSCRIBERS_MAX} subscribers are the limit"
            )));
        }
        subscribers.push(Subscriber { filter, queue, overflowed: Arc::clone(&overflowed) });
        Ok(Subscription { events, overflowed })
    }

    fn deliver(&self, envelope: Arc<Envelope>) {
        let view = View { envelope: &envelope, fields: self.shared.fields.as_ref() };
        self.subscribers().retain(|subscriber| {
            if !subscriber.filter.matches(&view) {
                return !subscriber.queue.is_closed();
            }
            match subscriber.queue.try_send(Arc::clone(&envelope)) {
                Ok(()) => true,
                Err(TrySendError::Closed(_)) => false,
                Err(TrySendError::Full(_)) => {
                    subscriber.overflowed.store(true, Ordering::Release);
                    tracing::warn!(limit = SUBSCRIBER_QUEUE_LEN, "ended a slow event subscriber");
                    false
                }
            }
        });
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.shared.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("subscribers", &self.subscribers().len()).finish()
    }
}

/// A stream of events. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    events: mpsc::Receiver<Arc<Envelope>>,
    overflowed: Arc<AtomicBool>,
}

impl Subscription {
    /// Waits for the next event; None once the exchange is gone, or after the error. Safe to
    /// cancel: no event is lost.
    ///
    /// # Errors
    /// ResourceExhausted, once, after the queued events of a subscription that fell more than
    /// [`SUBSCRIBER_QUEUE_LEN`] events behind.
    pub async fn next(&mut self) -> Option<Result<Arc<Envelope>>> {
        match self.events.recv().await {
            Some(envelope) => Some(Ok(envelope)),
            None => self.overflowed.swap(false, Ordering::AcqRel).then(|| {
                Err(Error::resource_exhausted(format!(
                    "event subscription: reader is more than {SUBSCRIBER_QUEUE_LEN} events behind"
                )))
            }),
        }
    }
}

/// An event as filters see it.
struct View<'a> {
    envelope: &'a Envelope,
    fields: &'a dyn FieldAccess,
}

impl Adaptor for View<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["namespace"] => filters::text_field(self.envelope.namespace.as_str()),
            ["topic"] => filters::text_field(&self.envelope.topic),
            ["event", rest @ ..] if !rest.is_empty() => {
                self.fields.field(&self.envelope.event, rest).map(Cow::Owned)
            }
            _ => None,
        }
    }
}
