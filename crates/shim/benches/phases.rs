//! Where a container's time goes, phase by phase, for our shim and the installed one side by side.
//!
//! `cargo bench -p gantry-shim --bench phases [-- ROUNDS [SHIM…]]`: for each shim (ours, and
//! `containerd-shim-runc-v2` on PATH unless others are named) containers one after another and
//! execs in one container, through the task service, without a daemon. The rounds of the shims
//! alternate, so that a noisy machine is noisy for both. Times are medians in milliseconds.

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/it/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_api::Payload as _;
use gantry_api::containerd::runc::v1::Options;
use gantry_api::containerd::task::v3 as api;
use gantry_ttrpc::Client;
use harness::{BINARY, Bundle, Daemon, context, exec_request, run_for};
use prost::Message;
use prost_types::Any;

/// Enough for a median on a quiet machine.
const ROUNDS: u32 = 30;
const PHASES: [&str; 9] = [
    "start shim",
    "create",
    "start",
    "wait",
    "delete",
    "whole container",
    "exec: start",
    "exec: wait",
    "whole exec",
];

/// Times by phase of one shim.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    async fn phase<T>(&mut self, name: &'static str, work: impl Future<Output = T>) -> T {
        let from = Instant::now();
        let done = work.await;
        self.0.entry(name).or_default().push(from.elapsed());
        done
    }

    fn median_ms(&mut self, name: &'static str) -> f64 {
        let all = self.0.entry(name).or_default();
        all.sort_unstable();
        all.get(all.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }
}

/// A shim spoken to as every daemon can: version 2 of the service, which has the same messages.
struct Served {
    client: Client,
    id: String,
    /// Shims write their log here; held open for reading and not read.
    _log: std::fs::File,
}

impl Served {
    async fn start(daemon: &Daemon, bundle: &Bundle) -> Self {
        let mut options = std::fs::OpenOptions::new();
        let log = options.read(true).write(true).open(bundle.fifo("log")).expect("a FIFO");
        let out = daemon.start_with(bundle, |_| {});
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let address = String::from_utf8(out.stdout).expect("text");
        let client = Client::connect(address.trim()).expect("the shim listens");
        Self { client, id: bundle.id.clone(), _log: log }
    }

    async fn call<Q: Message, A: Message + Default>(&self, method: &str, request: Q) -> A {
        let (service, context) = ("containerd.task.v2.Task", context());
        self.client.call(service, method, &request, &context).await.expect(method)
    }

    async fn create(&self, daemon: &Daemon, bundle: &Bundle) {
        let root = daemon.dir.path().join("runc").display().to_string();
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.path.display().to_string(),
            options: Some(Any::pack(&Options { root, ..Options::default() })),
            ..Default::default()
        };
        let _: api::CreateTaskResponse = self.call("Create", request).await;
    }

    async fn start_process(&self, exec_id: &str) {
        let request = api::StartRequest { id: self.id.clone(), exec_id: exec_id.into() };
        let _: api::StartResponse = self.call("Start", request).await;
    }

    async fn wait(&self, exec_id: &str) {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec_id.into() };
        let _: api::WaitResponse = self.call("Wait", request).await;
    }

    async fn delete(&self, exec_id: &str) {
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.into() };
        let _: api::DeleteResponse = self.call("Delete", request).await;
    }

    async fn shutdown(self) {
        let request = api::ShutdownRequest { id: self.id.clone(), now: false };
        // Some are gone before they have answered.
        let service = "containerd.task.v2.Task";
        let _ = self.client.call::<_, ()>(service, "Shutdown", &request, &context()).await;
        self.client.closed().await;
    }
}

async fn container(binary: &Path, times: &mut Times) {
    let mut daemon = Daemon::start();
    daemon.binary = binary.to_path_buf();
    let bundle = daemon.bundle(&["true"]);
    let from = Instant::now();
    let shim = times.phase("start shim", Served::start(&daemon, &bundle)).await;
    times.phase("create", shim.create(&daemon, &bundle)).await;
    times.phase("start", shim.start_process("")).await;
    times.phase("wait", shim.wait("")).await;
    times.phase("delete", shim.delete("")).await;
    times.0.entry("whole container").or_default().push(from.elapsed());
    shim.shutdown().await;
}

async fn execs(binary: &Path, rounds: u32, times: &mut Times) {
    let mut daemon = Daemon::start();
    daemon.binary = binary.to_path_buf();
    let bundle = daemon.bundle(&["sleep", "1000"]);
    let shim = Served::start(&daemon, &bundle).await;
    shim.create(&daemon, &bundle).await;
    shim.start_process("").await;
    for n in 0..rounds {
        let exec = format!("e{n}");
        let from = Instant::now();
        shim.call::<_, ()>("Exec", exec_request(&shim.id, &exec, &["true"])).await;
        times.phase("exec: start", shim.start_process(&exec)).await;
        times.phase("exec: wait", shim.wait(&exec)).await;
        shim.delete(&exec).await;
        times.0.entry("whole exec").or_default().push(from.elapsed());
    }
    let signal = 9;
    let kill = api::KillRequest { id: shim.id.clone(), signal, ..Default::default() };
    shim.call::<_, ()>("Kill", kill).await;
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
}

fn installed() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|d| d.join("containerd-shim-runc-v2")).find(|p| p.is_file())
}

#[allow(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() {
    // Cargo adds its own flag.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let rounds = args.next().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let mut shims: Vec<PathBuf> = args.map(PathBuf::from).collect();
    if shims.is_empty() {
        shims = std::iter::once(PathBuf::from(BINARY)).chain(installed()).collect();
    }
    let mut times: Vec<Times> = shims.iter().map(|_| Times::default()).collect();
    run_for(rounds * 10, async {
        for _ in 0..rounds {
            for (shim, times) in shims.iter().zip(&mut times) {
                container(shim, times).await;
            }
        }
        for (shim, times) in shims.iter().zip(&mut times) {
            execs(shim, rounds, times).await;
        }
    });
    for (n, shim) in shims.iter().enumerate() {
        println!("shim {n}: {}", shim.display());
    }
    for phase in PHASES {
        let row: Vec<f64> = times.iter_mut().map(|times| times.median_ms(phase)).collect();
        let cells: String = row.iter().map(|ms| format!("{ms:10.2}")).collect();
        let ratio = row.get(1).filter(|other| **other > 0.0).map(|other| row[0] / other);
        println!("{phase:16}{cells}{}", ratio.map_or(String::new(), |r| format!("   {r:5.2}x")));
    }
}
