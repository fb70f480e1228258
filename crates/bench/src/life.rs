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

/// Lives measured one after another, per daemon; `GANTRY_BENCH_LIVES`.
const LIVES: usize = 30;

/// Lives measured at once (`GANTRY_BENCH_LIVES_AT_ONCE`), and how many at a time. One that fails
/// ends the bench.
const LIVES_AT_ONCE: usize = 96;
const WORKERS: usize = 16;

/// Execs measured one after another (`GANTRY_BENCH_EXECS`), and from eight clients.
const EXECS: usize = 100;
const EXECS_AT_ONCE: (usize, usize) = (240, 8);

/// The calls of a life, in their order.
const CALLS: [&str; 8] = [
    "snapshot prepare",
    "container create",
    "task create",
    "task start",
    "task wait",
    "task delete",
    "container delete",
    "snapshot remove",
];

/// How long each call of a life took.
#[derive(Default)]
pub(crate) struct Calls([Duration; CALLS.len()]);

impl Calls {
    async fn time<T>(&mut self, call: &str, work: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = work.await;
        let at = CALLS.iter().position(|name| *name == call).expect("one of the calls");
        self.0[at] = begin.elapsed();
        done
    }
}

pub(crate) async fn run(pair: &Pair, report: &mut Report) -> Result<()> {
    let mut sides = [Vec::new(), Vec::new()];
    let mut calls: [[Vec<Duration>; 2]; CALLS.len()] = Default::default();
    for round in 0..count("GANTRY_BENCH_LIVES", LIVES) {
        for side in [round % 2, 1 - round % 2] {
            let client = &pair.daemons[side].1;
            let begin = Instant::now();
            let took = life(client, &format!("life-{round}")).await?;
            sides[side].push(begin.elapsed());
            for (all, one) in calls.iter_mut().zip(took.0) {
                all[side].push(one);
            }
        }
    }
    report.times("container life, one after another", sides);
    for (name, sides) in CALLS.iter().zip(calls) {
        report.times(&format!("    {name}"), sides);
    }
    let lives = count("GANTRY_BENCH_LIVES_AT_ONCE", LIVES_AT_ONCE);
    let mut rates = [0.0; 2];
    for (side, (_, client)) in pair.daemons.iter().enumerate() {
        let client = client.clone();
        rates[side] = rate(lives, WORKERS, move |n| {
            let client = client.clone();
            async move { life(&client, &format!("many-{n}")).await.map(drop) }
        })
        .await?;
    }
    report.rates(&format!("{lives} container lives, {WORKERS} at once"), rates);
    Ok(())
}

pub(crate) async fn run_execs(pair: &Pair, report: &mut Report) -> Result<()> {
    let mut sides = [Vec::new(), Vec::new()];
    let mut rates = [0.0; 2];
    for (_, client) in &pair.daemons {
        create(client, "execs", &["sleep", "1000"]).await?;
        start(client, "execs").await?;
    }
    for round in 0..count("GANTRY_BENCH_EXECS", EXECS) {
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
pub(crate) async fn life(client: &Client, id: &str) -> Result<Calls> {
    let mut calls = Calls::default();
    create_timed(client, id, &["true"], &mut calls).await?;
    calls.time("task start", start(client, id)).await?;
    calls.time("task wait", wait(client, id, "")).await?;
    remove(client, id, &mut calls).await?;
    Ok(calls)
}

/// Prepares the snapshot, the container and the task.
pub(crate) async fn create(client: &Client, id: &str, args: &[&str]) -> Result<()> {
    create_timed(client, id, args, &mut Calls::default()).await
}

async fn create_timed(client: &Client, id: &str, args: &[&str], calls: &mut Calls) -> Result<()> {
    let request = client.request(snapshots::PrepareSnapshotRequest {
        snapshotter: "overlayfs".into(),
        key: id.into(),
        parent: client.chain_id.to_string(),
        labels: none(),
    });
    let mut snapshots = client.snapshots();
    let prepared = calls.time("snapshot prepare", snapshots.prepare(request)).await?;
    let mounts = prepared.into_inner().mounts;
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
    let mut containers = client.containers();
    calls.time("container create", containers.create(client.request(create))).await?;
    let request =
        tasks::CreateTaskRequest { container_id: id.into(), rootfs: mounts, ..Default::default() };
    calls.time("task create", client.tasks().create(client.request(request))).await?;
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

async fn remove(client: &Client, id: &str, calls: &mut Calls) -> Result<()> {
    let request = tasks::DeleteTaskRequest { container_id: id.into() };
    calls.time("task delete", client.tasks().delete(client.request(request))).await?;
    let request = containers::DeleteContainerRequest { id: id.into() };
    let mut containers = client.containers();
    calls.time("container delete", containers.delete(client.request(request))).await?;
    let request =
        snapshots::RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: id.into() };
    let mut snapshots = client.snapshots();
    calls.time("snapshot remove", snapshots.remove(client.request(request))).await?;
    Ok(())
}

/// Kills the init.
pub(crate) async fn kill(client: &Client, id: &str) -> Result<()> {
    let request = tasks::KillRequest { container_id: id.into(), signal: 9, ..Default::default() };
    client.tasks().kill(client.request(request)).await?;
    Ok(())
}

/// Removes what is still there of a container whose task somebody else may have deleted.
pub(crate) async fn forget(client: &Client, id: &str) {
    let request = tasks::DeleteTaskRequest { container_id: id.into() };
    let _ = client.tasks().delete(client.request(request)).await;
    let request = containers::DeleteContainerRequest { id: id.into() };
    let _ = client.containers().delete(client.request(request)).await;
    let request =
        snapshots::RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: id.into() };
    let _ = client.snapshots().remove(client.request(request)).await;
}

pub(crate) async fn kill_and_remove(client: &Client, id: &str) -> Result<()> {
    kill(client, id).await?;
    wait(client, id, "").await?;
    remove(client, id, &mut Calls::default()).await
}

pub(crate) async fn exec(client: &Client, id: &str, exec_id: &str) -> Result<()> {
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

/// A number of rounds: the variable `name`, or what there is time for in the short form.
pub(crate) fn count(name: &str, short: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

/// How long background work of the last measurement is given to end.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}
