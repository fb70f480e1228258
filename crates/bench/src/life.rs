//! A container's life and execs in a running one, API to API.

use std::time::{Duration, Instant};

use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::snapshots::v1 as snapshots;
use gantry_api::containerd::services::tasks::v1 as tasks;
use gantry_errdefs::{Error, Result};
use gantry_oci::{PROCESS_TYPE_URL, SPEC_TYPE_URL, SpecBuilder, to_json};

use crate::client::{Client, none, rate, spec_any};
use crate::report::Report;
use crate::{IMAGE, Pair};

/// Lives measured one after another, per daemon.
const LIVES: usize = 30;

/// Lives measured at once, and how many at a time.
const LIVES_AT_ONCE: (usize, usize) = (96, 16);

/// Execs measured one after another, and from eight clients.
const EXECS: usize = 100;
const EXECS_AT_ONCE: (usize, usize) = (240, 8);

pub(crate) async fn run(pair: &Pair, report: &mut Report) -> Result<()> {
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..LIVES {
        for side in [round % 2, 1 - round % 2] {
            let client = &pair.daemons[side].1;
            let begin = Instant::now();
            life(client, &format!("life-{round}")).await?;
            sides[side].push(begin.elapsed());
        }
    }
    report.times("container life, one after another", sides);
    let mut rates = [0.0; 2];
    for (side, (_, client)) in pair.daemons.iter().enumerate() {
        let client = client.clone();
        rates[side] = rate(LIVES_AT_ONCE.0, LIVES_AT_ONCE.1, move |n| {
            let client = client.clone();
            async move { life(&client, &format!("many-{n}")).await }
        })
        .await?;
    }
    report.rates("container lives, 16 at once", rates);
    Ok(())
}

pub(crate) async fn run_execs(pair: &Pair, report: &mut Report) -> Result<()> {
    let mut sides = [Vec::new(), Vec::new()];
    let mut rates = [0.0; 2];
    for (_, client) in &pair.daemons {
        create(client, "execs", &["sleep", "1000"]).await?;
        start(client, "execs").await?;
    }
    for round in 0..EXECS {
        for side in [round % 2, 1 - round % 2] {
            let begin = Instant::now();
            exec(&pair.daemons[side].1, "execs", &format!("e{round}")).await?;
            sides[side].push(begin.elapsed());
        }
    }
    report.times("exec of true, one after another", sides);
    for (side, (_, client)) in pair.daemons.iter().enumerate() {
        let worker = client.clone();
        rates[side] = rate(EXECS_AT_ONCE.0, EXECS_AT_ONCE.1, move |n| {
            let client = worker.clone();
            async move { exec(&client, "execs", &format!("m{n}")).await }
        })
        .await?;
    }
    report.rates("execs of true, from 8 clients", rates);
    for (_, client) in &pair.daemons {
        kill_and_remove(client, "execs").await?;
    }
    Ok(())
}

/// Everything from the snapshot to its removal.
async fn life(client: &Client, id: &str) -> Result<()> {
    create(client, id, &["true"]).await?;
    start(client, id).await?;
    wait(client, id, "").await?;
    remove(client, id).await
}

/// Prepares the snapshot, the container and the task.
pub(crate) async fn create(client: &Client, id: &str, args: &[&str]) -> Result<()> {
    let mounts = client
        .snapshots()
        .prepare(client.request(snapshots::PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            parent: client.chain_id.to_string(),
            labels: none(),
        }))
        .await?
        .into_inner()
        .mounts;
    let spec = SpecBuilder::new(client.namespace(), id)
        .args(args.iter().copied())
        .env("PATH=/bin")
        .build()?;
    let container = containers::Container {
        id: id.into(),
        image: IMAGE.into(),
        runtime: Some(containers::container::Runtime {
            name: "io.containerd.runc.v2".into(),
            options: None,
        }),
        spec: Some(spec_any(SPEC_TYPE_URL, to_json(&spec)?)),
        snapshotter: "overlayfs".into(),
        snapshot_key: id.into(),
        ..Default::default()
    };
    let create = containers::CreateContainerRequest { container: Some(container) };
    client.containers().create(client.request(create)).await?;
    let request =
        tasks::CreateTaskRequest { container_id: id.into(), rootfs: mounts, ..Default::default() };
    client.tasks().create(client.request(request)).await?;
    Ok(())
}

pub(crate) async fn start(client: &Client, id: &str) -> Result<()> {
    let request = tasks::StartRequest { container_id: id.into(), exec_id: String::new() };
    client.tasks().start(client.request(request)).await?;
    Ok(())
}

async fn wait(client: &Client, id: &str, exec_id: &str) -> Result<()> {
    let request = tasks::WaitRequest { container_id: id.into(), exec_id: exec_id.into() };
    let ended = client.tasks().wait(client.request(request)).await?.into_inner();
    match (exec_id, ended.exit_status) {
        (_, 0) | ("", 137) => Ok(()),
        (_, code) => Err(Error::unknown(format!("{id} {exec_id} ended with {code}"))),
    }
}

async fn remove(client: &Client, id: &str) -> Result<()> {
    let request = tasks::DeleteTaskRequest { container_id: id.into() };
    client.tasks().delete(client.request(request)).await?;
    let request = containers::DeleteContainerRequest { id: id.into() };
    client.containers().delete(client.request(request)).await?;
    let request =
        snapshots::RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: id.into() };
    client.snapshots().remove(client.request(request)).await?;
    Ok(())
}

pub(crate) async fn kill_and_remove(client: &Client, id: &str) -> Result<()> {
    let request = tasks::KillRequest { container_id: id.into(), signal: 9, ..Default::default() };
    client.tasks().kill(client.request(request)).await?;
    wait(client, id, "").await?;
    remove(client, id).await
}

async fn exec(client: &Client, id: &str, exec_id: &str) -> Result<()> {
    let spec = SpecBuilder::new(client.namespace(), id).args(["true"]).env("PATH=/bin").build()?;
    let request = tasks::ExecProcessRequest {
        container_id: id.into(),
        exec_id: exec_id.into(),
        spec: Some(spec_any(PROCESS_TYPE_URL, to_json(spec.process())?)),
        ..Default::default()
    };
    client.tasks().exec(client.request(request)).await?;
    let request = tasks::StartRequest { container_id: id.into(), exec_id: exec_id.into() };
    client.tasks().start(client.request(request)).await?;
    wait(client, id, exec_id).await?;
    let request = tasks::DeleteProcessRequest { container_id: id.into(), exec_id: exec_id.into() };
    client.tasks().delete_process(client.request(request)).await?;
    Ok(())
}

/// How long background work of the last measurement is given to end.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}
