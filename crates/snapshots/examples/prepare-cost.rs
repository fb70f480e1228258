//! What a container's snapshot costs: prepare and remove on the real database, one after another
//! and many at once.
//!
//! `cargo run --release -p gantry-snapshots --example prepare-cost -- <directory on the disk>`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, not a product")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_core::Labels;
use gantry_snapshots::{CommitOptions, Overlayfs, OverlayfsConfig, Snapshotter};
use gantry_store::{Options, RedbStore};

const ROUNDS: u32 = 200;
const PARALLEL: u32 = 50;

async fn layers(sn: &Overlayfs, count: u32) -> String {
    let mut parent = None;
    for i in 0..count {
        let name = format!("layer-{i}");
        sn.prepare("key", parent.as_deref(), Labels::new()).await.unwrap();
        sn.commit(&name, "key", CommitOptions::default()).await.unwrap();
        parent = Some(name);
    }
    parent.unwrap()
}

async fn one(sn: &Overlayfs, key: String, parent: &str) -> (Duration, Duration) {
    let start = Instant::now();
    sn.prepare(&key, Some(parent), Labels::new()).await.unwrap();
    let prepared = start.elapsed();
    sn.remove(&key).await.unwrap();
    (prepared, start.elapsed() - prepared)
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let base = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let dir = tempfile::tempdir_in(base).unwrap();
    let store = RedbStore::open(dir.path().join("db"), &Options::default()).unwrap();
    let root = dir.path().join("overlayfs");
    let sn = Overlayfs::open(root, OverlayfsConfig::default(), Arc::new(store)).unwrap();
    let top = layers(&sn, 10).await;
    let mut sum = (Duration::ZERO, Duration::ZERO);
    for i in 0..ROUNDS {
        let (prepare, remove) = one(&sn, format!("k{i}"), &top).await;
        sum = (sum.0 + prepare, sum.1 + remove);
    }
    println!("one by one: prepare {:?}, remove {:?}", sum.0 / ROUNDS, sum.1 / ROUNDS);
    let start = Instant::now();
    let tasks: Vec<_> = (0..PARALLEL)
        .map(|task| {
            let (sn, top) = (sn.clone(), top.clone());
            tokio::spawn(async move {
                for i in 0..ROUNDS / 10 {
                    one(&sn, format!("p{task}-{i}"), &top).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let pairs = PARALLEL * ROUNDS / 10;
    println!("{PARALLEL} at once: {:?} for each prepare and remove", start.elapsed() / pairs);
}
