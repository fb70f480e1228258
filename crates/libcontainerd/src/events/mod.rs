//! Events: one subscription, told to the engine in order per container, each exit once.
//!
//! A task of this library reads the subscription and hands every event to a worker of its
//! container ([`worker`]), which calls the engine. When the daemon went away and came back, every
//! worker looks at the state of its container and tells what the subscription missed. What this
//! client itself did is noted in a [`Registry`], so that a container nobody had an event of yet is
//! looked at too.

mod registry;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_client::{Client, EventData, EventFilter, EventFollower, ExitStatus, Followed};
use gantry_errdefs::Result;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::types::Backend;
use registry::Registry;
use worker::{Told, Worker};

/// Events of one container that may wait for the engine. More make the subscription wait, and
/// in the end be cut off by the daemon, after which the state is looked at: nothing is lost.
const WAITING_MAX: usize = 128;

/// Pause before the next try when the daemon stays away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// The running subscription; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Events {
    registry: Registry,
    reading: JoinHandle<()>,
}

impl Events {
    /// Subscribes; what happens from the return on is told to `backend`.
    pub(crate) async fn start(client: &Client, backend: Arc<dyn Backend>) -> Result<Self> {
        let filter = EventFilter::new().namespace(client.namespace()).topic_prefix("/tasks/");
        let follower = client.events().follow(&[filter.into()]).await?;
        let registry = Registry::default();
        let dispatcher = Dispatcher {
            client: client.clone(),
            backend,
            registry: registry.clone(),
            workers: HashMap::new(),
        };
        Ok(Self { registry, reading: tokio::spawn(dispatcher.run(follower)) })
    }

    /// Notes a task that this client made, or found (`told` then: what led to its state is old).
    pub(crate) fn known(&self, container: &str, pid: u32, told: bool) {
        self.registry.task(container, pid, told);
    }

    /// Notes an exec that this client adds.
    pub(crate) fn exec_known(&self, container: &str, exec: &str) {
        self.registry.exec(container, exec);
    }

    /// Notes how a process ended that this client removed; `exec` is empty for the task.
    pub(crate) fn ended(&self, container: &str, exec: &str, exit: &ExitStatus) {
        self.registry.ended(container, exec, exit);
    }

    /// Forgets a container that this client removed.
    pub(crate) fn forget(&self, container: &str) {
        self.registry.forget(container);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Hands events to the workers of their containers.
struct Dispatcher {
    client: Client,
    backend: Arc<dyn Backend>,
    registry: Registry,
    workers: HashMap<String, Handle>,
}

/// A container's worker.
struct Handle {
    /// None once the container's task was deleted: the worker ends with what it has.
    queue: Option<mpsc::Sender<Told>>,
    running: JoinHandle<()>,
}

impl Dispatcher {
    async fn run(mut self, mut follower: EventFollower) {
        loop {
            match follower.next().await {
                Ok(Followed::Event(event)) => match event.data() {
                    Ok(data) => self.dispatch(data).await,
                    Err(e) => tracing::warn!(topic = event.topic, error = %e, "unreadable event"),
                },
                Ok(Followed::Resubscribed) => self.look_at_all().await,
                Err(e) => {
                    tracing::warn!(error = %e, "no events from the daemon");
                    tokio::time::sleep(AWAY_PAUSE).await;
                }
            }
        }
    }

    async fn dispatch(&mut self, data: EventData) {
        let Some(container) = container_of(&data).map(str::to_owned) else { return };
        let is_last =
            matches!(&data, EventData::TaskDelete(e) if worker::is_init(&e.container_id, &e.id));
        self.tell(&container, Told::Event(Box::new(data))).await;
        if is_last && let Some(handle) = self.workers.get_mut(&container) {
            handle.queue = None;
        }
        self.workers.retain(|_, handle| handle.queue.is_some() || !handle.running.is_finished());
    }

    async fn look_at_all(&mut self) {
        let mut containers = self.registry.containers();
        let live = self.workers.iter().filter(|(_, handle)| handle.queue.is_some());
        containers.extend(live.map(|(id, _)| id.clone()));
        containers.sort_unstable();
        containers.dedup();
        for container in containers {
            self.tell(&container, Told::LookAtState).await;
        }
    }

    /// Puts something into the queue of a container's worker, which is made if there is none.
    async fn tell(&mut self, container: &str, told: Told) {
        let open = self.workers.get(container).and_then(|handle| handle.queue.clone());
        let queue = match open {
            Some(queue) => queue,
            None => self.start_worker(container),
        };
        // A worker ends before its queue only by a panic of the engine, which is its own affair.
        if queue.send(told).await.is_err() {
            tracing::error!(container, "the engine panicked; an event is lost");
            self.workers.remove(container);
        }
    }

    fn start_worker(&mut self, container: &str) -> mpsc::Sender<Told> {
        let (queue, told) = mpsc::channel(WAITING_MAX);
        let earlier = self.workers.remove(container).map(|handle| handle.running);
        let worker = Worker::new(
            container.to_owned(),
            self.client.clone(),
            self.backend.clone(),
            self.registry.clone(),
        );
        let running = tokio::spawn(async move {
            if let Some(earlier) = earlier {
                // One after the other: this container's order holds over its tasks too.
                let _ = earlier.await;
            }
            worker.run(told).await;
        });
        self.workers.insert(container.to_owned(), Handle { queue: Some(queue.clone()), running });
        queue
    }
}

/// The container that an event is about.
fn container_of(data: &EventData) -> Option<&str> {
    Some(match data {
        EventData::TaskCreate(e) => &e.container_id,
        EventData::TaskStart(e) => &e.container_id,
        EventData::TaskExit(e) => &e.container_id,
        EventData::TaskDelete(e) => &e.container_id,
        EventData::TaskExecAdded(e) => &e.container_id,
        EventData::TaskExecStarted(e) => &e.container_id,
        EventData::TaskOom(e) => &e.container_id,
        EventData::TaskPaused(e) => &e.container_id,
        EventData::TaskResumed(e) => &e.container_id,
        _ => return None,
    })
}
