//! From the end of a container to its start by the restart monitor, by the times in the events.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::events::v1 as events;
use gantry_errdefs::{Error, Result};
use prost_types::FieldMask;

use crate::client::Client;
use crate::report::median;
use crate::{Pair, life};

/// Containers that end once each; on ours alone, as containerd's monitor looks every 10 s.
const ROUNDS: usize = 20;

const EXIT: &str = "/tasks/exit";
const START: &str = "/tasks/start";

pub(crate) async fn run(pair: &Pair) -> Result<()> {
    let client = &pair.daemons[1].1;
    let mut took = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        took.push(restart(client, &format!("again-{round}")).await?);
    }
    let worst = took.iter().max().copied().unwrap_or_default();
    println!("restart after an exit: {:?} median, {worst:?} at worst", median(took));
    Ok(())
}

/// Starts a container, kills it, and returns how long it was not there.
async fn restart(client: &Client, id: &str) -> Result<Duration> {
    life::create(client, id, &["sleep", "1000"]).await?;
    label(client, id, &[("status", "running"), ("policy", "always")]).await?;
    let filters = [EXIT, START].map(|topic| {
        let namespace = client.namespace();
        format!("namespace=={namespace},topic==\"{topic}\",event.container_id=={id}")
    });
    let request = client.request(events::SubscribeRequest { filters: filters.into() });
    let mut stream = client.events().subscribe(request).await?.into_inner();
    life::start(client, id).await?;
    let (mut starts, mut exited) = (0, SystemTime::UNIX_EPOCH);
    let took = loop {
        let event = stream.message().await?;
        let event = event.ok_or_else(|| Error::data_loss("the stream has ended"))?;
        let at = event.timestamp.and_then(|at| SystemTime::try_from(at).ok());
        let at = at.ok_or_else(|| Error::data_loss("an event without a time"))?;
        if event.topic == EXIT {
            exited = at;
        } else {
            starts += 1;
            if starts == 2 {
                break at.duration_since(exited).unwrap_or_default();
            }
            life::kill(client, id).await?;
        }
    };
    label(client, id, &[("status", "stopped"), ("policy", "no")]).await?;
    // The monitor stops it, too; who comes second finds nothing.
    let _ = life::kill(client, id).await;
    life::settle().await;
    life::forget(client, id).await;
    Ok(took)
}

async fn label(client: &Client, id: &str, labels: &[(&str, &str)]) -> Result<()> {
    let labels: HashMap<_, _> = labels
        .iter()
        .map(|(key, value)| (format!("containerd.io/restart.{key}"), (*value).to_owned()))
        .collect();
    let container = containers::Container { id: id.into(), labels, ..Default::default() };
    let request = containers::UpdateContainerRequest {
        container: Some(container),
        update_mask: Some(FieldMask { paths: vec!["labels".into()] }),
    };
    client.containers().update(client.request(request)).await?;
    Ok(())
}
