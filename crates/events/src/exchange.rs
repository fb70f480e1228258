//! The exchange: one order of events, many bounded subscriptions.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

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

/// How long the publisher of a fact waits for subscriptions to take it. One that keeps up takes
/// well under a millisecond; one that does not is not waited for again before it has caught up.
pub const HANDOVER_MAX: Duration = Duration::from_secs(1);

/// How long after the start facts from before it are shown to new subscriptions: clients need some
/// seconds to find out that the daemon is back.
pub const RECOVERED_KEPT: Duration = Duration::from_secs(30);

/// Facts from before the start that are kept for that. They are one or two for each container that
/// ended while there was no daemon.
pub const RECOVERED_MAX: usize = SUBSCRIBER_QUEUE_LEN / 2;

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
    started: Instant,
    /// Held while an event goes to every queue, which makes the one order; nothing below waits.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<Subscriber>,
    /// Facts from before the start, in the order they were published.
    recovered: Vec<Arc<Envelope>>,
}

struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Queued>,
    overflowed: Arc<AtomicBool>,
}

/// An event on its way to one subscription.
#[derive(Debug)]
struct Queued {
    envelope: Arc<Envelope>,
    /// Dropped once the subscriber has it.
    taken: Option<mpsc::Sender<()>>,
}

/// Keeps the publisher of a fact waiting until it is dropped; see [`Subscription::handed`].
#[derive(Debug)]
pub struct Handed {
    _taken: mpsc::Sender<()>,
}

impl Exchange {
    /// An exchange without subscribers, whose filters read payloads through `fields`.
    pub fn new(fields: Arc<dyn FieldAccess>) -> Self {
        Self {
            shared: Arc::new(Shared { fields, started: Instant::now(), state: Mutex::default() }),
        }
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
        self.deliver(Arc::new(envelope), None);
        Ok(())
    }

    /// As [`Exchange::forward`], and resolves when every subscription that was keeping up has
    /// taken the event ([`Subscription::handed`]), at the latest after [`HANDOVER_MAX`]. It is
    /// published before the first await. A fact from before the start (`recovered`) is also shown
    /// to those who subscribe within [`RECOVERED_KEPT`] of the start.
    ///
    /// # Errors
    /// InvalidArgument for a topic that is not of the form `/a/b`.
    pub async fn hand_over(&self, envelope: Envelope, recovered: bool) -> Result<()> {
        validate_topic(&envelope.topic)?;
        let envelope = Arc::new(envelope);
        let (taken, mut all_taken) = mpsc::channel(1);
        self.deliver_fact(envelope, recovered, taken);
        // Ends when the last queue has let go of its sender.
        let _ = tokio::time::timeout(HANDOVER_MAX, all_taken.recv()).await;
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
        let mut state = self.state();
        state.subscribers.retain(|s| !s.queue.is_closed());
        if state.subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(Error::resource_exhausted(format!(
                "event subscription: {SUBSCRIBERS_MAX} subscribers are the limit"
            )));
        }
        if self.shared.started.elapsed() > RECOVERED_KEPT {
            state.recovered = Vec::new();
        }
        for envelope in &state.recovered {
            let view = View { envelope, fields: self.shared.fields.as_ref() };
            if filter.matches(&view) {
                // There is room: they are fewer than a queue is long.
                let _ = queue.try_send(Queued { envelope: Arc::clone(envelope), taken: None });
            }
        }
        state.subscribers.push(Subscriber { filter, queue, overflowed: Arc::clone(&overflowed) });
        Ok(Subscription { events, overflowed, taken: None })
    }

    fn deliver_fact(&self, envelope: Arc<Envelope>, recovered: bool, taken: mpsc::Sender<()>) {
        let mut state = self.state();
        if recovered
            && self.shared.started.elapsed() <= RECOVERED_KEPT
            && state.recovered.len() < RECOVERED_MAX
        {
            state.recovered.push(Arc::clone(&envelope));
        }
        self.deliver_in(&mut state, envelope, Some(taken));
    }

    fn deliver(&self, envelope: Arc<Envelope>, taken: Option<mpsc::Sender<()>>) {
        self.deliver_in(&mut self.state(), envelope, taken);
    }

    fn deliver_in(
        &self,
        state: &mut State,
        envelope: Arc<Envelope>,
        taken: Option<mpsc::Sender<()>>,
    ) {
        let view = View { envelope: &envelope, fields: self.shared.fields.as_ref() };
        state.subscribers.retain(|subscriber| {
            if !subscriber.filter.matches(&view) {
                return !subscriber.queue.is_closed();
            }
            // Nobody waits for one that lags behind.
            let keeps_up = subscriber.queue.capacity() == subscriber.queue.max_capacity();
            let taken = taken.clone().filter(|_| keeps_up);
            match subscriber.queue.try_send(Queued { envelope: Arc::clone(&envelope), taken }) {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("subscribers", &self.state().subscribers.len()).finish()
    }
}

/// A stream of events. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    events: mpsc::Receiver<Queued>,
    overflowed: Arc<AtomicBool>,
    /// Tells that the last event has been taken, by being dropped.
    taken: Option<mpsc::Sender<()>>,
}

impl Subscription {
    /// To be dropped when the last event has reached whom it is for: its publisher waits for that.
    /// None when nobody waits. If it is not taken, asking for the next event means the same.
    pub fn handed(&mut self) -> Option<Handed> {
        self.taken.take().map(|taken| Handed { _taken: taken })
    }

    /// Waits for the next event; None once the exchange is gone, or after the error. Safe to
    /// cancel: no event is lost.
    ///
    /// # Errors
    /// ResourceExhausted, once, after the queued events of a subscription that fell more than
    /// [`SUBSCRIBER_QUEUE_LEN`] events behind.
    pub async fn next(&mut self) -> Option<Result<Arc<Envelope>>> {
        self.taken = None;
        match self.events.recv().await {
            Some(queued) => {
                self.taken = queued.taken;
                Some(Ok(queued.envelope))
            }
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
