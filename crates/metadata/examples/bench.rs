//! What the store itself can do, without gRPC: pairs and blobs a second, alone and with 16
//! clients, on a real database. `cargo run --release -p gantry-metadata --example bench [DIR]`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gantry_content::{LocalStore, WriterOptions};
use gantry_core::{Any, Context, Labels, Namespace};
use gantry_metadata::{Container, Db, Options};
use gantry_snapshots::{Native, NativeConfig};
use gantry_store::{RedbStore, Store};

const TIME: Duration = Duration::from_secs(3);
const SPEC_LEN: usize = 3 << 10;
const LISTED: u32 = 10_000;

#[tokio::main]
async fn main() {
    let base = std::env::args().nth(1).unwrap_or_else(|| "/var/tmp".to_owned());
    let dir = tempfile::tempdir_in(base).unwrap();
    let db = open(dir.path());
    for clients in [1, 16] {
        rate("container pairs", clients, &db, |db, ctx, n| async move {
            let c = container(format!("c{n}"));
            db.containers().create(&ctx, c).await.unwrap();
            db.containers().delete(&ctx, &format!("c{n}")).await.unwrap();
        })
        .await;
        rate("blobs of 4 KiB", clients, &db, |db, ctx, n| async move {
            let reference = format!("b{n}");
            let options = WriterOptions { reference, total: 4096, expected: None };
            let mut writer = db.content().writer(&ctx, options).await.unwrap();
            let mut data = vec![7; 4096];
            data[..8].copy_from_slice(&n.to_be_bytes());
            writer.write(Bytes::from(data)).await.unwrap();
            writer.commit(4096, None, Labels::new()).await.unwrap();
        })
        .await;
        rate("snapshot pairs", clients, &db, |db, ctx, n| async move {
            let sn = db.snapshotter("native").unwrap();
            sn.prepare(&ctx, &format!("s{n}"), None, Labels::new()).await.unwrap();
            sn.remove(&ctx, &format!("s{n}")).await.unwrap();
        })
        .await;
    }
    let ctx = Context::new(Namespace::new("list").unwrap());
    for n in 0..LISTED {
        db.containers().create(&ctx, container(format!("l{n}"))).await.unwrap();
    }
    for _ in 0..3 {
        let (started, cpu) = (Instant::now(), cpu_ms());
        let listed = db.containers().list(&ctx, &[]).await.unwrap().len();
        let cpu = cpu_ms() - cpu;
        println!("list of {listed} containers: {:?}, CPU {cpu} ms", started.elapsed());
    }
    let started = Instant::now();
    let stats = db.gc().run().await.unwrap();
    println!("collection: {:?}, {stats:?}", started.elapsed());
    let started = Instant::now();
    let stats = db.gc().run().await.unwrap();
    println!("collection of nothing: {:?}, {stats:?}", started.elapsed());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmRSS")).unwrap());
}

/// CPU time of the process so far, all threads, to 10 ms.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

fn open(dir: &Path) -> Db {
    let store: Arc<dyn Store> =
        Arc::new(RedbStore::open(dir.join("db"), &gantry_store::Options::default()).unwrap());
    let content = Arc::new(LocalStore::open(dir.join("content")).unwrap());
    let native =
        Native::open(dir.join("native"), NativeConfig::default(), Arc::clone(&store)).unwrap();
    let mut options = Options::new(store, content);
    options.snapshotters.insert("native".into(), Arc::new(native));
    let db = Db::open(options).unwrap();
    db.gc().start();
    db
}

fn container(id: String) -> Container {
    let mut c = Container::new(id);
    c.runtime.name = "io.containerd.runc.v2".into();
    c.spec = Some(Any { type_url: "spec".into(), value: vec![b'x'; SPEC_LEN] });
    c
}

async fn rate<F, Fut>(what: &str, clients: u32, db: &Db, work: F)
where
    F: Fn(Db, Context, u64) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = ()> + Send,
{
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (started, cpu) = (Instant::now(), cpu_ms());
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let (db, work) = (db.clone(), work.clone());
        tasks.push(tokio::spawn(async move {
            let ctx = Context::new(Namespace::new("bench").unwrap());
            let mut done = 0_u64;
            let mut slowest = Duration::ZERO;
            while started.elapsed() < TIME {
                let begun = Instant::now();
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                work(db.clone(), ctx.clone(), n).await;
                slowest = slowest.max(begun.elapsed());
                done += 1;
            }
            (done, slowest)
        }));
    }
    let (mut done, mut slowest) = (0, Duration::ZERO);
    for task in tasks {
        let (own, own_slowest) = task.await.unwrap();
        done += own;
        slowest = slowest.max(own_slowest);
    }
    let cpu_us = (cpu_ms() - cpu) * 1000 / done.max(1);
    let per_sec = done as f64 / started.elapsed().as_secs_f64();
    println!(
        "{what}, {clients} clients: {per_sec:.0}/s, slowest {slowest:?}, CPU {cpu_us} us each"
    );
}
