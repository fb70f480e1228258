//! Events in, one keeper per container.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_api::Payload as _;
use gantry_api::containerd::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, TaskDelete, TaskExit, TaskStart,
};
use gantry_core::{Context, Namespace};
use gantry_errdefs::Result;
use gantry_events::{Envelope, Exchange, Subscription};
use gantry_metadata::Db;
use gantry_runtime::plugin::Runtime;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::keeper::{self, Keeper};
use crate::labels::{STATUS, Wish};
use crate::policy::Occasion;
use crate::work::Work;

/// Restarts made at a time: a host of hundreds that comes up must not start all of them at once.
const RESTARTS_MAX: usize = 16;
/// The daemon's events are heard again after this when a flood of them was not.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(100);

/// The events that may change what is to be done.
const TOPICS: [&str; 4] = [
    "topic==\"/tasks/start\"",
    "topic==\"/tasks/exit\"",
    "topic==\"/tasks/delete\"",
    "topic~=|^/containers/|",
];

/// How the monitor behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a client is given for what it may be about to do itself.
    pub interval: Duration,
}

/// The monitor while it works; dropping it ends it, and leaves the containers as they are.
#[derive(Debug)]
pub struct Monitor {
    work: JoinHandle<()>,
}

impl Monitor {
    /// Looks at every container of `db` and follows what happens to them from now on. Must be
    /// called within a tokio runtime.
    pub fn start(db: Db, runtime: Arc<dyn Runtime>, exchange: Exchange, config: Config) -> Self {
        let keepers = Keepers {
            db,
            runtime,
            config,
            room: Arc::new(Semaphore::new(RESTARTS_MAX)),
            known: HashMap::new(),
            running: JoinSet::new(),
        };
        Self { work: tokio::spawn(keepers.run(exchange)) }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// A container of a namespace.
type Key = (Namespace, String);

struct Keepers {
    db: Db,
    runtime: Arc<dyn Runtime>,
    config: Config,
    room: Arc<Semaphore>,
    known: HashMap<Key, Arc<Keeper>>,
    running: JoinSet<Key>,
}

impl Keepers {
    async fn run(mut self, exchange: Exchange) {
        let mut occasion = Occasion::DaemonStart;
        loop {
            match exchange.subscribe(&TOPICS) {
                Ok(events) => {
                    self.look_at_all(occasion).await;
                    occasion = Occasion::Event;
                    if self.follow(events).await.is_none() {
                        return;
                    }
                }
                Err(err) => tracing::warn!(%err, "restart monitor: no events"),
            }
            tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
        }
    }

    /// Follows events; none when there will be no more.
    async fn follow(&mut self, mut events: Subscription) -> Option<()> {
        loop {
            tokio::select! {
                event = events.next() => match event? {
                    Ok(event) => {
                        if let Err(err) = self.hear(&event) {
                            tracing::warn!(topic = event.topic, %err, "restart monitor");
                        }
                    }
                    // Too many at once: some were missed.
                    Err(_) => return Some(()),
                },
                Some(ended) = self.running.join_next() => match ended {
                    Ok(key) => self.ended(key),
                    Err(err) => tracing::error!(%err, "restart monitor"),
                },
            }
        }
    }

    /// Wakes every keeper, and makes those that are missing.
    async fn look_at_all(&mut self, occasion: Occasion) {
        for keeper in self.known.values() {
            keeper.changed();
        }
        let filters = [format!("labels.\"{STATUS}\"")];
        let namespaces = match self.db.namespaces().list().await {
            Ok(namespaces) => namespaces,
            Err(err) => return tracing::error!(%err, "restart monitor: no list of namespaces"),
        };
        for namespace in namespaces.into_iter().filter_map(|ns| Namespace::new(ns.name).ok()) {
            let ctx = Context::new(namespace.clone());
            match self.db.containers().list(&ctx, &filters).await {
                Ok(found) => {
                    for container in found {
                        let key = (namespace.clone(), container.id);
                        if !self.known.contains_key(&key) {
                            self.spawn(key, Arc::default(), occasion);
                        }
                    }
                }
                Err(err) => tracing::error!(%err, %namespace, "restart monitor: no containers"),
            }
        }
    }

    fn hear(&mut self, event: &Envelope) -> Result<()> {
        let any = prost_types::Any {
            type_url: event.event.type_url.clone(),
            value: event.event.value.clone(),
        };
        let key = |id: String| (event.namespace.clone(), id);
        if let Some(start) = any.unpack::<TaskStart>()? {
            self.tell(&key(start.container_id), |k| k.started(start.pid, event.timestamp));
        } else if let Some(exit) = any.unpack::<TaskExit>()? {
            if exit.id == exit.container_id || exit.id.is_empty() {
                self.tell(&key(exit.container_id), |k| k.exited(exit.pid));
            }
        } else if let Some(delete) = any.unpack::<TaskDelete>()? {
            self.tell(&key(delete.container_id), Keeper::changed);
        } else if let Some(created) = any.unpack::<ContainerCreate>()? {
            self.look_at(key(created.id));
        } else if let Some(updated) = any.unpack::<ContainerUpdate>()? {
            match updated.labels.contains_key(STATUS) {
                true => self.look_at(key(updated.id)),
                false => self.tell(&key(updated.id), Keeper::changed),
            }
        } else if let Some(deleted) = any.unpack::<ContainerDelete>()? {
            self.tell(&key(deleted.id), Keeper::changed);
        }
        Ok(())
    }

    fn tell(&self, key: &Key, what: impl FnOnce(&Keeper)) {
        if let Some(keeper) = self.known.get(key) {
            what(keeper);
        }
    }

    fn look_at(&mut self, key: Key) {
        match self.known.get(&key) {
            Some(keeper) => keeper.changed(),
            None => self.spawn(key, Arc::default(), Occasion::Event),
        }
    }

    fn spawn(&mut self, key: Key, keeper: Arc<Keeper>, occasion: Occasion) {
        let work = Work::new(&self.db, &self.runtime, &self.room, &key.0, &key.1);
        let interval = self.config.interval;
        self.known.insert(key.clone(), Arc::clone(&keeper));
        self.running.spawn(async move {
            keeper::keep(keeper, Arc::new(work), occasion, interval).await;
            key
        });
    }

    /// A keeper had nothing to keep; it may have been told of something since.
    fn ended(&mut self, key: Key) {
        if let Some(keeper) = self.known.remove(&key)
            && keeper.has_news()
        {
            self.spawn(key, keeper, Occasion::Event);
        }
    }
}

/// What a record asks for, and when it was last changed.
pub(crate) fn wish_of(container: &gantry_metadata::Container) -> Option<(Wish, SystemTime)> {
    Some((Wish::read(&container.labels)?, container.updated_at))
}
