//! Records: container and snapshot pairs, lists.

use std::time::Instant;

use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::snapshots::v1 as snapshots;
use gantry_errdefs::{Error, Result};
use prost::Message as _;

use crate::Pair;
use crate::client::{Client, pinned, rate, rates};
use crate::life::settle;
use crate::parts::Parts;
use crate::raw::Connection;
use crate::report::Report;

const PAIRS: usize = 4000;
const LISTED: usize = 10_000;
const LISTS: usize = 11;
const WORKERS: usize = 16;

const LIST: &str = "/containerd.services.containers.v1.Containers/List";

/// The parts.
const PARTS: Parts = Parts { bench: "records", names: &["containers", "snapshots", "list"] };

/// Runs the parts that `wanted` names; all of them when it is empty or names `records`.
pub(crate) async fn run(pair: &Pair, report: &mut Report, wanted: &[String]) -> Result<()> {
    let parts = PARTS.chosen(wanted);
    let want = |part| parts.contains(&part);
    for workers in [1, WORKERS] {
        if want("containers") {
            let rates =
                rates(pair, PAIRS, workers, |client, n| async move { pair_of(&client, n).await });
            report.rates(&format!("container create+delete, {workers} at once"), rates.await?);
        }
        if want("snapshots") {
            let rates =
                rates(
                    pair,
                    PAIRS / 2,
                    workers,
                    |client, n| async move { snapshot(&client, n).await },
                );
            report.rates(&format!("snapshot prepare+remove, {workers} at once"), rates.await?);
        }
    }
    if want("list") {
        lists(pair, report).await?;
    }
    Ok(())
}

async fn lists(pair: &Pair, report: &mut Report) -> Result<()> {
    let mut sides = [Vec::new(), Vec::new()];
    for (_, client) in &pair.daemons {
        let client = client.clone();
        rate(LISTED, WORKERS, move |n| {
            let client = client.clone();
            async move { create(&client, n).await }
        })
        .await?;
    }
    settle().await;
    let request = containers::ListContainersRequest { filters: vec![] };
    let mut connections = Vec::new();
    for (daemon, _) in &pair.daemons {
        connections.push(Connection::open(&daemon.address()).await?);
    }
    for round in 0..LISTS {
        for side in [round % 2, 1 - round % 2] {
            let connection = &connections[side];
            let namespace = pair.daemons[side].1.namespace();
            let begin = Instant::now();
            let call = connection.call(LIST, namespace, &request).await?;
            let list = call.answer().await?.next().await?;
            sides[side].push(begin.elapsed());
            let list = containers::ListContainersResponse::decode(list)
                .map_err(|e| Error::data_loss(format!("a list: {e}")))?;
            let listed = list.containers.len();
            assert!(listed >= LISTED, "only {listed} are listed");
        }
    }
    report.times("list of 10,000 containers", sides);
    report.sizes("daemon RSS with 10,000 containers, listed", crate::memory::daemons(pair));
    crate::memory::rest().await;
    report.sizes("daemon RSS with 10,000 containers, at rest", crate::memory::daemons(pair));
    for (_, client) in &pair.daemons {
        let client = client.clone();
        rate(LISTED, WORKERS, move |n| {
            let client = client.clone();
            async move { delete(&client, n).await }
        })
        .await?;
    }
    Ok(())
}

/// Creates and deletes `count` records from `workers` tasks; returns how many a second.
pub(crate) async fn pairs(client: &Client, count: usize, workers: usize) -> Result<f64> {
    let client = client.clone();
    rate(count, workers, move |n| {
        let client = client.clone();
        async move { pair_of(&client, n).await }
    })
    .await
}

async fn pair_of(client: &Client, n: usize) -> Result<()> {
    create(client, n).await?;
    delete(client, n).await
}

async fn create(client: &Client, n: usize) -> Result<()> {
    let container = containers::Container {
        id: format!("record-{n}"),
        runtime: Some(containers::container::Runtime {
            name: "io.containerd.runc.v2".into(),
            options: None,
        }),
        spec: Some(prost_types::Any {
            type_url: gantry_oci::SPEC_TYPE_URL.into(),
            value: vec![b' '; 512],
        }),
        ..Default::default()
    };
    let create = containers::CreateContainerRequest { container: Some(container) };
    client.containers().create(client.request(create)).await?;
    Ok(())
}

async fn delete(client: &Client, n: usize) -> Result<()> {
    let request = containers::DeleteContainerRequest { id: format!("record-{n}") };
    client.containers().delete(client.request(request)).await?;
    Ok(())
}

async fn snapshot(client: &Client, n: usize) -> Result<()> {
    let key = format!("snapshot-{n}");
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: "overlayfs".into(),
        key: key.clone(),
        parent: client.chain_id.to_string(),
        labels: pinned(),
    };
    client.snapshots().prepare(client.request(prepare)).await?;
    let remove = snapshots::RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key };
    client.snapshots().remove(client.request(remove)).await?;
    Ok(())
}
