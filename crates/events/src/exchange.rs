//! The exchange: one order of events, many bounded subscriptions.

use std::borrow::Cow;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use gantry_core::filters::{self, Adaptor, Filter};
use gantry_core::{Any, Namespace};
use gantry_errdefs::{Error, Result};
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::recovered::{Kept, RecoveredFile};
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

/// How long a subscription that has just been read to its end sleeps before it wakes for what came
/// meanwhile. Waking a reader costs far more than an event does, so the events of a burst go out
/// together; the first after a silence, and facts that somebody waits with, go out at once.
pub const GATHERED: Duration = Duration::from_millis(1);

/// As [`GATHERED`], for each subscription there is, if that is longer: the more are to be woken, the
/// longer the machine is busy with one event, and the more of them have to share that.
pub const GATHERED_EACH: Duration = Duration::from_micros(50);

/// The longest such sleep, however many subscriptions there are.
pub const GATHERED_MAX: Duration = Duration::from_millis(10);

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

/// An event on its way to subscriptions, with its encoding for their clients once one has made it.
#[derive(Debug)]
pub struct Event {
    envelope: Envelope,
    encoded: OnceLock<Bytes>,
}

impl Event {
    fn new(envelope: Envelope) -> Arc<Self> {
        Arc::new(Self { envelope, encoded: OnceLock::new() })
    }

    /// The event as clients get it: what `encode` makes of it for the first subscription, for all.
    pub fn encoded(&self, encode: impl FnOnce(&Envelope) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(&self.envelope)).clone()
    }
}

impl Deref for Event {
    type Target = Envelope;

    fn deref(&self) -> &Envelope {
        &self.envelope
    }
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
    /// Where facts from before the start are kept; none in memory alone.
    file: Option<Arc<RecoveredFile>>,
    started: Instant,
    /// Held while an event goes to every queue, which makes the one order; nothing below waits.
    state: Mutex<State>,
    /// Every subscription has a clone.
    crowd: Arc<()>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<Subscriber>,
    /// Facts from before the start, in the order they were published.
    recovered: Vec<Recovered>,
}

struct Recovered {
    /// In the file, if there is one.
    number: u64,
    key: String,
    event: Arc<Event>,
}

struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Queued>,
    reader: Arc<ReaderState>,
}

/// What an exchange and the reader of one subscription tell each other besides events.
#[derive(Debug, Default)]
struct ReaderState {
    /// It fell too far behind and was ended.
    overflowed: AtomicBool,
    /// It did not take a fact in time, and has not read its queue to the end since.
    lags: AtomicBool,
    /// An event has come that somebody waits with.
    urgent: Notify,
}

/// An event on its way to one subscription.
#[derive(Debug)]
struct Queued {
    event: Arc<Event>,
    /// Dropped once the subscriber has it.
    taken: Option<mpsc::Sender<()>>,
    /// Its number among the facts from before the start.
    recovered: Option<u64>,
}

/// Keeps the publisher of a fact waiting until it is dropped; see [`Subscription::handed`].
#[derive(Debug)]
pub struct Handed {
    /// The fact in the file of those from before the start.
    kept: Option<(Arc<RecoveredFile>, u64)>,
    _taken: Option<mpsc::Sender<()>>,
}

impl Handed {
    /// The client has it: no later daemon needs to show it. Its publisher goes on.
    pub fn reached(self) {
        if let Some((file, number)) = &self.kept {
            file.strike(*number);
        }
    }
}

impl Exchange {
    /// An exchange without subscribers, whose filters read payloads through `fields`.
    pub fn new(fields: Arc<dyn FieldAccess>) -> Self {
        Self::with(fields, None, Vec::new())
    }

    /// As [`Exchange::new`]; facts from before the start are kept in the file at `path` until a
    /// client has had them, and those that an earlier daemon left there are shown as its own.
    /// Blocks.
    ///
    /// # Errors
    /// The I/O error.
    pub fn open(fields: Arc<dyn FieldAccess>, path: &Path) -> Result<Self> {
        let (file, kept) = RecoveredFile::open(path)?;
        Ok(Self::with(fields, Some(Arc::new(file)), kept))
    }

    fn with(
        fields: Arc<dyn FieldAccess>,
        file: Option<Arc<RecoveredFile>>,
        kept: Vec<Kept>,
    ) -> Self {
        let recovered = kept.into_iter().map(|Kept { number, key, envelope }| Recovered {
            number,
            key,
            event: Event::new(envelope),
        });
        let state = State { subscribers: Vec::new(), recovered: recovered.collect() };
        let (started, state) = (Instant::now(), Mutex::new(state));
        Self { shared: Arc::new(Shared { fields, file, started, state, crowd: Arc::default() }) }
    }

    /// Forgets facts from before the start [`RECOVERED_KEPT`] from now, whether anybody has had
    /// them or not. Must be called within a tokio runtime.
    pub fn start(&self) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            tokio::time::sleep(RECOVERED_KEPT).await;
            let Some(shared) = shared.upgrade() else { return };
            Self { shared }.forget_recovered();
        });
    }

    fn forget_recovered(&self) {
        self.state().recovered = Vec::new();
        if let Some(file) = &self.shared.file {
            file.clear();
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
        self.deliver(Event::new(envelope), None);
        Ok(())
    }

    /// As [`Exchange::forward`], and resolves when every subscription that was keeping up has
    /// taken the event ([`Subscription::handed`]), at the latest after [`HANDOVER_MAX`]. It is
    /// published before the first await. A fact from before the start has a key in `recovered` that
    /// tells it from others: it is also shown to those who subscribe within [`RECOVERED_KEPT`] of
    /// the start, and by the next daemon if none has by then. One that is kept so already is not
    /// published again.
    ///
    /// # Errors
    /// InvalidArgument for a topic that is not of the form `/a/b`.
    pub async fn hand_over(&self, envelope: Envelope, recovered: Option<&str>) -> Result<()> {
        validate_topic(&envelope.topic)?;
        let (taken, mut all_taken) = mpsc::channel(1);
        match recovered.filter(|_| self.shared.started.elapsed() <= RECOVERED_KEPT) {
            Some(key) => self.deliver_recovered(key, envelope, taken),
            None => self.deliver(Event::new(envelope), Some(taken)),
        }
        // Ends when the last queue has let go of its sender.
        if tokio::time::timeout(HANDOVER_MAX, all_taken.recv()).await.is_err() {
            for subscriber in &self.state().subscribers {
                let behind = subscriber.queue.capacity() < subscriber.queue.max_capacity();
                subscriber.reader.lags.fetch_or(behind, Ordering::AcqRel);
            }
        }
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
        let reader = Arc::new(ReaderState::default());
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
        for Recovered { number, event, .. } in &state.recovered {
            let view = View { envelope: event, fields: self.shared.fields.as_ref() };
            if filter.matches(&view) {
                let (event, recovered) = (Arc::clone(event), Some(*number));
                // There is room: they are fewer than a queue is long.
                let _ = queue.try_send(Queued { event, taken: None, recovered });
            }
        }
        state.subscribers.push(Subscriber { filter, queue, reader: Arc::clone(&reader) });
        let (file, crowd) = (self.shared.file.clone(), Arc::clone(&self.shared.crowd));
        Ok(Subscription { events, reader, crowd, woken: false, file, taken: None, recovered: None })
    }

    fn deliver_recovered(&self, key: &str, envelope: Envelope, taken: mpsc::Sender<()>) {
        let is_kept = |state: &State| state.recovered.iter().any(|kept| kept.key == key);
        if is_kept(&self.state()) {
            return;
        }
        // Not under the lock: only its own publisher brings a fact, one at a time.
        let file = self.shared.file.as_ref();
        let number = file.map_or(0, |file| file.keep(key, &envelope).number);
        let event = Event::new(envelope);
        let mut state = self.state();
        if state.recovered.len() < RECOVERED_MAX {
            let (key, event) = (key.to_owned(), Arc::clone(&event));
            state.recovered.push(Recovered { number, key, event });
        }
        self.deliver_in(&mut state, event, Some(taken), Some(number));
    }

    fn deliver(&self, event: Arc<Event>, taken: Option<mpsc::Sender<()>>) {
        self.deliver_in(&mut self.state(), event, taken, None);
    }

    fn deliver_in(
        &self,
        state: &mut State,
        event: Arc<Event>,
        taken: Option<mpsc::Sender<()>>,
        recovered: Option<u64>,
    ) {
        let view = View { envelope: &event, fields: self.shared.fields.as_ref() };
        state.subscribers.retain(|subscriber| {
            if !subscriber.filter.matches(&view) {
                return !subscriber.queue.is_closed();
            }
            // Nobody waits for one that lags behind.
            let reader = &subscriber.reader;
            let taken = taken.clone().filter(|_| !reader.lags.load(Ordering::Acquire));
            if taken.is_some() {
                reader.urgent.notify_one();
            }
            let queued = Queued { event: Arc::clone(&event), taken, recovered };
            match subscriber.queue.try_send(queued) {
                Ok(()) => true,
                Err(TrySendError::Closed(_)) => false,
                Err(TrySendError::Full(_)) => {
                    reader.overflowed.store(true, Ordering::Release);
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
    reader: Arc<ReaderState>,
    /// One for each subscription, and that of the exchange.
    crowd: Arc<()>,
    /// Whether there were events since the last sleep.
    woken: bool,
    file: Option<Arc<RecoveredFile>>,
    /// Tells that the last event has been taken, by being dropped.
    taken: Option<mpsc::Sender<()>>,
    /// The number of the last event, if it is a fact from before the start.
    recovered: Option<u64>,
}

impl Subscription {
    /// To be [told](Handed::reached) when the last event has reached the client it is for: its
    /// publisher waits for that, and a fact from before the start is then known to a client. None
    /// when neither matters. For whoever reads events for himself, asking for the next is enough.
    pub fn handed(&mut self) -> Option<Handed> {
        let taken = self.taken.take();
        let kept = self.file.clone().zip(self.recovered.take());
        (taken.is_some() || kept.is_some()).then_some(Handed { kept, _taken: taken })
    }

    /// How long it sleeps after it has been read to its end.
    fn sleep(&self) -> Duration {
        let subscriptions = Arc::strong_count(&self.crowd).saturating_sub(1);
        let each = GATHERED_EACH.saturating_mul(u32::try_from(subscriptions).unwrap_or(u32::MAX));
        each.clamp(GATHERED, GATHERED_MAX)
    }

    /// Waits for the next event; None once the exchange is gone, or after the error. Safe to
    /// cancel: no event is lost.
    ///
    /// # Errors
    /// ResourceExhausted, once, after the queued events of a subscription that fell more than
    /// [`SUBSCRIBER_QUEUE_LEN`] events behind.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>>> {
        (self.taken, self.recovered) = (None, None);
        if self.events.is_empty() {
            self.reader.lags.store(false, Ordering::Release);
            if std::mem::take(&mut self.woken) {
                let _ = tokio::time::timeout(self.sleep(), self.reader.urgent.notified()).await;
            }
        }
        match self.events.recv().await {
            Some(queued) => {
                self.woken = true;
                (self.taken, self.recovered) = (queued.taken, queued.recovered);
                Some(Ok(queued.event))
            }
            None => self.reader.overflowed.swap(false, Ordering::AcqRel).then(|| {
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
