//! The way in for events of shims.

use std::time::SystemTime;

use gantry_api::Payload;
use gantry_api::containerd::events::{TaskDelete, TaskExit};
use gantry_api::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_api::containerd::services::events::ttrpc::v1::events_ttrpc::Events;
use gantry_core::Namespace;
use gantry_errdefs::{Error, Result};
use gantry_events::{Envelope, Exchange};
use gantry_ttrpc::Context;

use crate::journal::{Fact, OfTask};
use crate::manager::Told;
use crate::{Exit, Manager, convert};

/// Serves `containerd.services.events.ttrpc.v1.Events` to shims, and whoever else takes in events
/// of tasks.
///
/// Events go to the exchange as they are, but facts (exits, kills for memory, deletions) only once:
/// see `journal.rs`.
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
        // A missing time is the start of the epoch, as containerd has it.
        let timestamp = envelope.timestamp.and_then(convert::to_system_time);
        self.take(Envelope {
            timestamp: timestamp.unwrap_or(SystemTime::UNIX_EPOCH),
            namespace,
            topic: envelope.topic,
            event: convert::from_wire(envelope.event.unwrap_or_default()),
        })
        .await
    }
}

impl EventService {
    /// Publishes an event, unless it tells a fact that has been told.
    ///
    /// # Errors
    /// InvalidArgument for a bad topic, or an event that does not decode.
    pub async fn take(&self, envelope: Envelope) -> Result<()> {
        let fact = Fact::of(&convert::to_wire(&envelope.event), envelope.timestamp)?;
        let Some(of_task) = fact else {
            return self.exchange.forward(envelope);
        };
        let key = format!("{} {}", envelope.namespace, of_task.key());
        let OfTask { task: id, pid, fact } = of_task;
        let topic = envelope.topic.clone();
        let told = match self.manager.journal(&envelope.namespace, &id, pid) {
            Told::By(journal) => {
                let recovered = (envelope.timestamp < self.manager.started_at()).then_some(key);
                journal.tell(&self.exchange, fact, envelope, recovered).await?
            }
            // Late words of a shim that was taken for dead, and whose task has been reported.
            Told::Already => false,
            Told::Never => self.exchange.forward(envelope).map(|()| true)?,
        };
        if !told {
            tracing::debug!(topic, id, "event published already");
        }
        Ok(())
    }
}

/// The event that tells the exit of a process; `exec` is empty for the first one.
pub(crate) fn exit_event(namespace: &Namespace, id: &str, exec: &str, exit: &Exit) -> Envelope {
    let event = TaskExit {
        container_id: id.to_owned(),
        id: if exec.is_empty() { id.to_owned() } else { exec.to_owned() },
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: exit.exited_at.map(Into::into),
    };
    envelope(namespace, "/tasks/exit", prost_types::Any::pack(&event))
}

/// The event that tells the deletion of a task.
pub(crate) fn delete_event(namespace: &Namespace, id: &str, exit: &Exit) -> Envelope {
    let event = TaskDelete {
        container_id: id.to_owned(),
        id: String::new(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: exit.exited_at.map(Into::into),
    };
    envelope(namespace, "/tasks/delete", prost_types::Any::pack(&event))
}

fn envelope(namespace: &Namespace, topic: &str, event: prost_types::Any) -> Envelope {
    Envelope {
        timestamp: SystemTime::now(),
        namespace: namespace.clone(),
        topic: topic.to_owned(),
        event: convert::from_wire(event),
    }
}
