//! The way in for events of shims.

use std::time::SystemTime;

use gantry_api::Payload;
use gantry_api::containerd::events::{TaskDelete, TaskExit};
use gantry_api::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_api::containerd::services::events::ttrpc::v1::events_ttrpc::Events;
use gantry_core::{Any, Namespace};
use gantry_errdefs::{Error, Result};
use gantry_events::{Envelope, Exchange};
use gantry_ttrpc::Context;

use crate::{Exit, Manager, convert};

/// Serves `containerd.services.events.ttrpc.v1.Events` to shims.
///
/// Events go to the exchange as they are, with one exception: the exit or deletion of a task
/// whose shim died after sending it is not published again when the daemon cleans up, nor the
/// other way round.
#[derive(Clone, Debug)]
pub struct EventService {
    manager: Manager,
    exchange: Exchange,
}

impl EventService {
    /// Forwards to the exchange that `manager` publishes to.
    pub fn new(manager: Manager) -> Self {
        let exchange = manager.exchange().clone();
        Self { manager, exchange }
    }
}

impl Events for EventService {
    async fn forward(&self, _: Context, request: ForwardRequest) -> Result<()> {
        let envelope =
            request.envelope.ok_or_else(|| Error::invalid_argument("event envelope: missing"))?;
        let namespace = Namespace::new(envelope.namespace)?;
        let event = envelope.event.unwrap_or_default();
        if !self.manager.is_news(&namespace, &Passing::of(&event)?) {
            tracing::debug!(topic = envelope.topic, "event published already");
            return Ok(());
        }
        // A missing time is the start of the epoch, as containerd has it.
        let timestamp = envelope.timestamp.and_then(convert::to_system_time);
        self.exchange.forward(Envelope {
            timestamp: timestamp.unwrap_or(SystemTime::UNIX_EPOCH),
            namespace,
            topic: envelope.topic,
            event: convert::from_wire(event),
        })
    }
}

/// An event as far as the manager cares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    /// The first process of this task ended.
    Exit(String),
    /// This task was deleted.
    Delete(String),
    /// Anything else.
    Other,
}

impl Passing {
    fn of(event: &prost_types::Any) -> Result<Self> {
        if let Some(exit) = event.unpack::<TaskExit>()?
            && (exit.id == exit.container_id || exit.id.is_empty())
        {
            return Ok(Self::Exit(exit.container_id));
        }
        if let Some(delete) = event.unpack::<TaskDelete>()?
            && (delete.id == delete.container_id || delete.id.is_empty())
        {
            return Ok(Self::Delete(delete.container_id));
        }
        Ok(Self::Other)
    }
}

/// Publishes the exit of a task whose shim did not.
pub(crate) fn publish_exit(exchange: &Exchange, namespace: &Namespace, id: &str, exit: &Exit) {
    let event = TaskExit {
        container_id: id.to_owned(),
        id: id.to_owned(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: exit.exited_at.map(Into::into),
    };
    publish(exchange, namespace, "/tasks/exit", prost_types::Any::pack(&event));
}

/// Publishes the deletion of a task whose shim did not.
pub(crate) fn publish_delete(exchange: &Exchange, namespace: &Namespace, id: &str, exit: &Exit) {
    let event = TaskDelete {
        container_id: id.to_owned(),
        id: String::new(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: exit.exited_at.map(Into::into),
    };
    publish(exchange, namespace, "/tasks/delete", prost_types::Any::pack(&event));
}

fn publish(exchange: &Exchange, namespace: &Namespace, topic: &str, event: prost_types::Any) {
    let event: Any = convert::from_wire(event);
    if let Err(err) = exchange.publish(namespace, topic, event) {
        tracing::warn!(topic, %err, "event not published");
    }
}
