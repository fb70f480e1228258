//! What only shows after long: failures among many lives, and memory of many shims or after many
//! execs. On ours alone, as nothing here is compared; takes minutes, and runs when asked for.

use gantry_errdefs::{Error, Result};

use crate::client::rate;
use crate::{Pair, life, memory};

/// Lives from 16 clients, of which none may fail; `GANTRY_ENDURANCE_LIVES`.
const LIVES: usize = 5_000;
const LIVES_AT_ONCE: usize = 16;

/// Containers that do nothing, all at the same time; `GANTRY_ENDURANCE_IDLE`.
const IDLE: usize = 200;

/// Execs in one container from 8 clients; `GANTRY_ENDURANCE_EXECS`.
const EXECS: usize = 100_000;
const EXECS_AT_ONCE: usize = 8;
/// Execs before the first look at the memory, so that what is made once is there.
const WARM_UP: usize = 500;
/// How often it is looked at meanwhile: growth that ends is no leak.
const STEPS: usize = 5;

pub(crate) async fn run(pair: &Pair) -> Result<()> {
    let lives = life::count("GANTRY_ENDURANCE_LIVES", LIVES);
    let per_second = lives_at_once(pair, lives).await?;
    println!("endurance: {lives} lives, {LIVES_AT_ONCE} at once, none failed, {per_second:.1} /s");
    idle(pair, life::count("GANTRY_ENDURANCE_IDLE", IDLE)).await?;
    execs(pair, life::count("GANTRY_ENDURANCE_EXECS", EXECS)).await
}

async fn lives_at_once(pair: &Pair, lives: usize) -> Result<f64> {
    let client = pair.daemons[1].1.clone();
    rate(lives, LIVES_AT_ONCE, move |n| {
        let client = client.clone();
        async move { life::life(&client, &format!("long-{n}")).await.map(drop) }
    })
    .await
}

/// Memory of all shims of many containers at rest.
async fn idle(pair: &Pair, count: usize) -> Result<()> {
    let (daemon, client) = &pair.daemons[1];
    for n in 0..count {
        let id = format!("idle-{n}");
        life::create(client, &id, &["sleep", "10000"]).await?;
        life::start(client, &id).await?;
    }
    memory::rest().await;
    let shims = memory::shims(daemon);
    if shims.len() != count {
        return Err(Error::internal(format!("{} shims of {count} containers", shims.len())));
    }
    for key in ["Rss:", "Pss:", "Private_Dirty:"] {
        let all: u64 = shims.iter().map(|pid| memory::rollup(*pid, key)).sum();
        println!("endurance: {count} idle shims, {key} {all} KiB together");
    }
    for n in 0..count {
        life::kill_and_remove(client, &format!("idle-{n}")).await?;
    }
    Ok(())
}

/// Growth of a shim by execs.
async fn execs(pair: &Pair, count: usize) -> Result<()> {
    let (daemon, client) = &pair.daemons[1];
    life::create(client, "execs", &["sleep", "10000"]).await?;
    life::start(client, "execs").await?;
    for step in 0..=STEPS {
        let count = if step == 0 { WARM_UP } else { count / STEPS };
        let worker = client.clone();
        let per_second = rate(count, EXECS_AT_ONCE, move |n| {
            let client = worker.clone();
            async move { life::exec(&client, "execs", &format!("{step}-{n}")).await }
        })
        .await?;
        memory::rest().await;
        let all = memory::shims(daemon);
        let private: u64 = all.iter().map(|pid| memory::rollup(*pid, "Private_Dirty:")).sum();
        println!("endurance: {count} more execs, {per_second:.0} /s, private {private} KiB after");
    }
    life::kill_and_remove(client, "execs").await
}
