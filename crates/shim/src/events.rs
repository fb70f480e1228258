//! Telling the daemon what happened.
//!
//! One queue in order, one task that empties it. While the daemon is away events wait; it comes
//! back on the same socket path and gets them. The queue has a limit: past it the oldest are
//! dropped, which loses news but no facts, since exits are on disk ([`crate::state`]).

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_api::Payload as _;
use gantry_api::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_api::containerd::types::Envelope;
use gantry_errdefs::{Class, Error, Result};
use gantry_ttrpc::{Client, Context};
use prost::{Message as _, Name};
use prost_types::Any;
use tokio::sync::Notify;

use crate::log::warning;
use crate::reaper::Reaper;
use crate::{clock, fd};

/// An event is some 200 bytes, so a full queue is 200 kB; a container makes about ten in its life
/// and two an exec, so this is hours of probes with no daemon.
const QUEUE_EVENTS_MAX: usize = 1024;
/// A daemon that takes longer for one event is treated as absent.
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);
/// Between attempts: the first, doubling up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(25);
const RETRY_LAST: Duration = Duration::from_secs(2);

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";

/// How events reach the daemon.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    /// Its ttrpc socket.
    Ttrpc(String),
    /// Its own binary: `<binary> --address <address> publish …`.
    Binary {
        /// The program.
        binary: String,
        /// The daemon's gRPC socket.
        address: String,
    },
    /// Nobody wants them.
    None,
}

/// The queue of events.
#[derive(Debug)]
pub(crate) struct Events {
    namespace: String,
    queue: Mutex<Queue>,
    added: Notify,
    emptied: Notify,
    /// Told when an event was sent, or was not.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Envelope>,
    /// How many have left the front: tells whether the front is still the one being sent.
    gone: u64,
    /// Nothing more is sent.
    held: bool,
    /// The front is being sent.
    sending: bool,
}

impl Events {
    /// An empty queue for `namespace`.
    pub(crate) fn new(namespace: &str) -> Arc<Self> {
        Arc::new(Self {
            namespace: namespace.to_owned(),
            queue: Mutex::default(),
            added: Notify::new(),
            emptied: Notify::new(),
            settled: Notify::new(),
        })
    }

    /// Adds an event. Never waits.
    pub(crate) fn publish<M: Name>(&self, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(clock::timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any::pack(event)),
        };
        let mut queue = self.lock();
        if queue.waiting.len() == QUEUE_EVENTS_MAX {
            queue.pop();
            warning!("no daemon takes events: the oldest of {QUEUE_EVENTS_MAX} was dropped");
        }
        queue.waiting.push_back(envelope);
        drop(queue);
        self.added.notify_one();
    }

    /// Waits until everything was sent, at most `deadline` long.
    pub(crate) async fn flush(&self, deadline: Duration) {
        let empty = async {
            loop {
                let emptied = self.emptied.notified();
                if self.lock().waiting.is_empty() {
                    return;
                }
                emptied.await;
            }
        };
        if tokio::time::timeout(deadline, empty).await.is_err() {
            warning!("{} events were not delivered", self.lock().waiting.len());
        }
    }

    /// Stops sending; resolves when the event that is being sent is sent, or was refused.
    pub(crate) async fn hold(&self) {
        self.lock().held = true;
        loop {
            let settled = self.settled.notified();
            if !self.lock().sending {
                return;
            }
            settled.await;
        }
    }

    /// Sends again.
    pub(crate) fn release(&self) {
        self.lock().held = false;
        self.added.notify_one();
    }

    /// What was not sent, encoded.
    pub(crate) fn carry(&self) -> Vec<Vec<u8>> {
        self.lock().waiting.iter().map(prost::Message::encode_to_vec).collect()
    }

    /// Takes up what the program before this one has not sent.
    pub(crate) fn resume(&self, events: &[Vec<u8>]) {
        let mut queue = self.lock();
        for event in events {
            match Envelope::decode(event.as_slice()) {
                Ok(event) => queue.waiting.push_back(event),
                Err(err) => warning!("an event of the last program: {err}"),
            }
        }
    }

    /// The event to send next.
    fn front(&self) -> Option<(u64, Envelope)> {
        let mut queue = self.lock();
        let front = queue.waiting.front().filter(|_| !queue.held).cloned();
        queue.sending = front.is_some();
        front.map(|event| (queue.gone, event))
    }

    /// Notes that the event `at` was sent, or that it was not.
    fn sent(&self, at: u64, gone: bool) {
        let mut queue = self.lock();
        queue.sending = false;
        if gone && queue.gone == at {
            queue.pop();
        }
        drop(queue);
        self.settled.notify_waiters();
    }

    /// Sends events for as long as the process lives.
    pub(crate) async fn run(self: Arc<Self>, route: Route, reaper: Arc<Reaper>) {
        let mut sender = Sender { route, client: None, reaper };
        let mut pause = RETRY_FIRST;
        loop {
            let Some((at, event)) = self.front() else {
                self.emptied.notify_waiters();
                self.added.notified().await;
                continue;
            };
            match sender.send(&event).await {
                Err(err) if is_passing(&err) => {
                    self.sent(at, false);
                    crate::log::debugging!("event {}: {err}", event.topic);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LAST);
                    continue;
                }
                Err(err) => warning!("event {} was refused: {err}", event.topic),
                Ok(()) => {}
            }
            pause = RETRY_FIRST;
            self.sent(at, true);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn pop(&mut self) {
        if self.waiting.pop_front().is_some() {
            self.gone += 1;
        }
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
    }
}

/// Whether the daemon is away, rather than against the event.
fn is_passing(err: &Error) -> bool {
    matches!(err.class(), Class::Unavailable | Class::DeadlineExceeded | Class::NotFound)
}

struct Sender {
    route: Route,
    client: Option<Client>,
    reaper: Arc<Reaper>,
}

impl Sender {
    async fn send(&mut self, event: &Envelope) -> Result<()> {
        match self.route.clone() {
            Route::None => Ok(()),
            Route::Ttrpc(address) => self.forward(&address, event).await,
            Route::Binary { binary, address } => self.exec(&binary, &address, event).await,
        }
    }

    async fn forward(&mut self, address: &str, event: &Envelope) -> Result<()> {
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => Client::connect(address)?,
        };
        let context = Context::with_timeout(FORWARD_DEADLINE).with(NAMESPACE_KEY, &event.namespace);
        let request = ForwardRequest { envelope: Some(event.clone()) };
        let sent: Result<()> = client.call(SERVICE, "Forward", &request, &context).await;
        // A connection that did not answer in time is not trusted again.
        if !matches!(&sent, Err(err) if is_passing(err)) {
            self.client = Some(client);
        }
        sent
    }

    async fn exec(&self, binary: &str, address: &str, event: &Envelope) -> Result<()> {
        let input = fd::memory("event")?;
        let any = event.event.clone().unwrap_or_default();
        fd::write_all(input.as_fd(), &any.encode_to_vec())?;
        rustix::fs::seek(&input, rustix::fs::SeekFrom::Start(0))
            .map_err(|err| Error::io("event", err.into()))?;
        let mut command = Command::new(binary);
        command.args(["--address", address, "publish", "--topic", &event.topic]);
        command.args(["--namespace", &event.namespace]);
        command.stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::null());
        let failed = |why: String| Error::unavailable(format!("{binary} publish: {why}"));
        let spawned = self.reaper.spawn(&mut command);
        let (pid, exited) = spawned.map_err(|err| failed(err.to_string()))?;
        match tokio::time::timeout(FORWARD_DEADLINE, exited).await {
            Ok(Ok(exit)) if exit.status == 0 => Ok(()),
            Ok(Ok(exit)) => Err(failed(format!("exit status {}", exit.status))),
            Ok(Err(_)) => Err(failed("its exit got lost".to_owned())),
            Err(_) => {
                fd::kill(pid);
                Err(failed("no answer".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::containerd::events::TaskOom;

    #[test]
    fn a_full_queue_drops_the_oldest() {
        let events = Events::new("ns");
        for n in 0..QUEUE_EVENTS_MAX + 3 {
            events.publish("/tasks/oom", &TaskOom { container_id: n.to_string() });
        }
        let queue = events.lock();
        assert_eq!(queue.waiting.len(), QUEUE_EVENTS_MAX);
        let first = queue.waiting[0].event.clone().expect("an event");
        let first = first.unpack::<TaskOom>().expect("decodes").expect("an oom");
        assert_eq!(first.container_id, "3");
        assert_eq!(queue.gone, 3);
    }
}
