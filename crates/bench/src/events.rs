//! Events to many subscribers.

use std::time::Instant;

use gantry_api::containerd::services::events::v1 as events;
use gantry_errdefs::{Error, Result};
use prost_types::Any;
use tokio::task::JoinSet;

use crate::Pair;
use crate::client::Client;
use crate::report::Report;

const SUBSCRIBERS: usize = 100;

/// Events published one after another; below the limit at which a slow subscriber is cut off.
const PUBLISHED: usize = 1000;

/// Published until every subscriber has seen one: only then is everybody subscribed.
const WARM_UP_TOPIC: &str = "/bench/warm";

const ROUNDS: usize = 9;

pub(crate) async fn run(pair: &Pair, report: &mut Report) -> Result<()> {
    let mut best = [0.0_f64; 2];
    for round in 0..ROUNDS {
        for side in [round % 2, 1 - round % 2] {
            let rate = fan_out(&pair.daemons[side].1).await?;
            best[side] = best[side].max(rate);
        }
    }
    report.rates("events delivered to 100 subscribers", best);
    Ok(())
}

/// Events delivered a second.
async fn fan_out(client: &Client) -> Result<f64> {
    let mut readers = JoinSet::new();
    let (ready, mut waiting) = tokio::sync::mpsc::channel(SUBSCRIBERS);
    for _ in 0..SUBSCRIBERS {
        let (client, ready) = (client.clone(), ready.clone());
        readers.spawn(async move {
            let filters = vec![format!("namespace=={}", client.namespace())];
            let request = client.request(events::SubscribeRequest { filters });
            let mut stream = client.events().subscribe(request).await?.into_inner();
            let (mut seen, mut told) = (0, false);
            while seen < PUBLISHED {
                let event = stream.message().await?;
                let event = event.ok_or_else(|| Error::data_loss("the stream has ended"))?;
                match event.topic.as_str() {
                    WARM_UP_TOPIC if !told => {
                        told = true;
                        let _ = ready.send(()).await;
                    }
                    WARM_UP_TOPIC => {}
                    _ => seen += 1,
                }
            }
            Ok::<(), Error>(())
        });
    }
    for _ in 0..SUBSCRIBERS {
        while waiting.try_recv().is_err() {
            publish(client, WARM_UP_TOPIC).await?;
            tokio::task::yield_now().await;
        }
    }
    let begin = Instant::now();
    for _ in 0..PUBLISHED {
        publish(client, "/bench/event").await?;
    }
    while let Some(done) = readers.join_next().await {
        done.map_err(|e| Error::internal(format!("a subscriber: {e}")))??;
    }
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    Ok((SUBSCRIBERS * PUBLISHED) as f64 / begin.elapsed().as_secs_f64())
}

async fn publish(client: &Client, topic: &str) -> Result<()> {
    let event = Any { type_url: "containerd.events.TaskExit".into(), value: vec![10, 1, b'c'] };
    let request = events::PublishRequest { topic: topic.into(), event: Some(event) };
    client.events().publish(client.request(request)).await?;
    Ok(())
}
