//! Events to many subscribers.

use std::path::Path;
use std::time::Instant;

use gantry_api::containerd::services::events::v1 as events;
use gantry_errdefs::{Error, Result};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Pair;
use crate::client::{Client, in_turns};
use crate::raw::{self, Connection};
use crate::report::Report;

const SUBSCRIBERS: usize = 100;

/// How many publish at once. What one alone takes is mostly the time of its calls.
const PUBLISHERS: [usize; 2] = [10, 1];

/// Events published in a round; below the limit at which a slow subscriber is cut off.
const PUBLISHED: usize = 1000;

/// The last byte of events published until every subscriber has seen one: only then is everybody
/// subscribed.
const WARM_UP: u8 = b'w';

/// The last byte of events that count.
const COUNTED: u8 = b'c';

const ROUNDS: usize = 15;

const SUBSCRIBE: &str = "/containerd.services.events.v1.Events/Subscribe";

pub(crate) async fn run(pair: &Pair, report: &mut Report) -> Result<()> {
    for publishing in PUBLISHERS {
        let rates = in_turns(ROUNDS, async |_, side| {
            let (daemon, client) = &pair.daemons[side];
            fan_out(client, &daemon.address(), publishing).await
        });
        let what =
            format!("events delivered to {SUBSCRIBERS} subscribers, {publishing} publishing");
        report.rates(&what, rates.await?);
    }
    Ok(())
}

/// Events delivered a second, from the first that is published until the last subscriber has the
/// last.
async fn fan_out(client: &Client, socket: &Path, publishing: usize) -> Result<f64> {
    let (ready, mut waiting) = mpsc::channel(SUBSCRIBERS);
    let (socket, namespace) = (socket.to_owned(), client.namespace().to_owned());
    let readers = tokio::task::spawn_blocking(move || subscribers(&socket, &namespace, &ready));
    for _ in 0..SUBSCRIBERS {
        while let Err(none) = waiting.try_recv() {
            if none == mpsc::error::TryRecvError::Disconnected {
                break;
            }
            publish(client, WARM_UP).await?;
            tokio::task::yield_now().await;
        }
    }
    let begin = Instant::now();
    let mut publishers = JoinSet::new();
    for _ in 0..publishing {
        let client = client.clone();
        publishers.spawn(async move {
            for _ in 0..PUBLISHED / publishing {
                publish(&client, COUNTED).await?;
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(done) = publishers.join_next().await {
        done.map_err(|e| Error::internal(format!("a publisher: {e}")))??;
    }
    readers.await.map_err(|e| Error::internal(format!("subscribers: {e}")))??;
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    Ok((SUBSCRIBERS * PUBLISHED) as f64 / begin.elapsed().as_secs_f64())
}

async fn publish(client: &Client, last: u8) -> Result<()> {
    let event = Any { type_url: "containerd.events.TaskExit".into(), value: vec![10, 1, last] };
    let request = events::PublishRequest { topic: "/bench/event".into(), event: Some(event) };
    client.events().publish(client.request(request)).await?;
    Ok(())
}

/// Subscribes, and reads until every subscriber has all that counts; on one thread.
fn subscribers(socket: &Path, namespace: &str, ready: &mpsc::Sender<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("the subscribers' runtime", e))?;
    let filters = vec![format!("namespace=={namespace}")];
    let request = events::SubscribeRequest { filters };
    runtime.block_on(async {
        let connection = Connection::open(socket).await?;
        let mut readers = JoinSet::new();
        for _ in 0..SUBSCRIBERS {
            let subscribed = connection.call(SUBSCRIBE, namespace, &request).await?;
            readers.spawn(read(subscribed, ready.clone()));
        }
        while let Some(done) = readers.join_next().await {
            done.map_err(|e| Error::internal(format!("a subscriber: {e}")))??;
        }
        Ok(())
    })
}

/// Reads one subscription; says `ready` with its first event.
async fn read(subscribed: raw::Call, ready: mpsc::Sender<()>) -> Result<()> {
    let mut events = subscribed.answer().await?;
    let mut ready = Some(ready);
    let mut seen = 0;
    while seen < PUBLISHED {
        let event = events.next().await?;
        if let Some(ready) = ready.take() {
            let _ = ready.send(()).await;
        }
        // An envelope ends with its event, and that with its value.
        seen += usize::from(event.last() == Some(&COUNTED));
    }
    Ok(())
}
