//! Shims as processes: which there are, and having them execute a newer program in place.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gantry_api::gantry::shim::v1::shim_ttrpc::ShimClient;
use gantry_api::gantry::shim::v1::{InfoRequest, UpgradeRequest};
use gantry_core::Namespace;
use gantry_errdefs::{Error, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Manager, blocking};
use crate::shim::Shim;

/// Shims asked at a time; one that does not answer takes a place for its deadline.
const ASKED_MAX: usize = 64;
/// Upgrades at a time: each runs the program twice.
const UPGRADES_MAX: usize = 4;

/// What is known of a shim's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShimStatus {
    /// Not ours, or older than live upgrades.
    Foreign,
    /// It runs what its program's path holds.
    Current,
    /// Its program was replaced since it started.
    Outdated,
    /// It does not answer.
    Degraded,
}

/// A shim's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimProcess {
    /// The namespace of its tasks.
    pub namespace: Namespace,
    /// Its tasks, in order: the containers of a pod share a shim.
    pub tasks: Vec<String>,
    /// Its pid; 0 when it does not answer.
    pub pid: u32,
    /// The version it says it has.
    pub version: String,
    /// The path of its program.
    pub program: PathBuf,
    /// Where it listens.
    pub address: String,
    /// What it is like.
    pub status: ShimStatus,
}

/// Which shims to upgrade, and to what.
#[derive(Clone, Debug, Default)]
pub struct UpgradeOptions {
    /// Those of this namespace only.
    pub namespace: Option<Namespace>,
    /// Those of these tasks only; none are all.
    pub tasks: Vec<String>,
    /// The program, instead of each shim's own path.
    pub program: Option<PathBuf>,
    /// Also those that run it already.
    pub force: bool,
}

/// What became of a shim.
#[derive(Debug)]
pub enum UpgradeOutcome {
    /// It goes on as it was, for this reason.
    LeftAlone(String),
    /// It runs the program; its version before is given.
    Upgraded(String),
    /// It goes on as it was, as this failed.
    Failed(Error),
}

impl Manager {
    /// The processes behind the tasks of `namespace`, or of all, by namespace and first task.
    pub async fn shims(&self, namespace: Option<&Namespace>) -> Vec<ShimProcess> {
        let room = Arc::new(Semaphore::new(ASKED_MAX));
        let mut asking = JoinSet::new();
        for shims in self.processes(namespace) {
            let room = Arc::clone(&room);
            asking.spawn(async move {
                let _room = room.acquire().await.expect("never closed");
                describe(&shims).await
            });
        }
        let mut found = asking.join_all().await;
        found.sort_by(|a, b| (&a.namespace, &a.tasks).cmp(&(&b.namespace, &b.tasks)));
        found
    }

    /// Has shims execute their program, and says of each what became of it. Those that do not
    /// know how are left alone.
    pub async fn upgrade(&self, options: &UpgradeOptions) -> Vec<(ShimProcess, UpgradeOutcome)> {
        let room = Arc::new(Semaphore::new(UPGRADES_MAX));
        let mut upgrading = JoinSet::new();
        for shims in self.processes(options.namespace.as_ref()) {
            let is_meant = |shim: &Arc<Shim>| options.tasks.contains(&shim.id);
            if !options.tasks.is_empty() && !shims.iter().any(is_meant) {
                continue;
            }
            let (room, options) = (Arc::clone(&room), options.clone());
            upgrading.spawn(async move {
                let _room = room.acquire().await.expect("never closed");
                let process = describe(&shims).await;
                let outcome = upgrade(&shims, &process, &options).await;
                (process, outcome)
            });
        }
        let mut done = upgrading.join_all().await;
        done.sort_by(|(a, _), (b, _)| (&a.namespace, &a.tasks).cmp(&(&b.namespace, &b.tasks)));
        done
    }

    /// The shims, those of one process together, each group in the order of its tasks.
    fn processes(&self, namespace: Option<&Namespace>) -> Vec<Vec<Arc<Shim>>> {
        let mut by_address: BTreeMap<String, Vec<Arc<Shim>>> = BTreeMap::new();
        for shim in self.inner.table.all() {
            if namespace.is_none_or(|ns| *ns == shim.namespace) {
                by_address.entry(shim.address.clone()).or_default().push(shim);
            }
        }
        let mut all: Vec<_> = by_address.into_values().collect();
        for shims in &mut all {
            shims.sort_by(|a, b| a.id.cmp(&b.id));
        }
        all
    }
}

async fn describe(shims: &[Arc<Shim>]) -> ShimProcess {
    let shim = &shims[0];
    let mut process = ShimProcess {
        namespace: shim.namespace.clone(),
        tasks: shims.iter().map(|shim| shim.id.clone()).collect(),
        pid: 0,
        version: String::new(),
        program: shim.program.clone(),
        address: shim.address.clone(),
        status: ShimStatus::Degraded,
    };
    let ctx = shim.context(Some(shim.config.deadlines.state));
    match ShimClient::new(shim.connection().clone()).info(&ctx, &InfoRequest {}).await {
        Ok(info) => {
            (process.pid, process.version) = (info.pid, info.version);
            process.status = match runs(info.pid, &shim.program).await {
                true => ShimStatus::Current,
                false => ShimStatus::Outdated,
            };
        }
        Err(err) if err.is_unavailable() || err.is_deadline_exceeded() => {}
        Err(_) => {
            process.status = ShimStatus::Foreign;
            if let Ok(answer) = shim.connect(shim.config.deadlines.state).await {
                (process.pid, process.version) = (answer.shim_pid, answer.version);
            }
        }
    }
    process
}

/// Whether the process runs what is at `program` right now.
async fn runs(pid: u32, program: &Path) -> bool {
    let program = program.to_owned();
    let same = blocking(move || {
        let of = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
        let running = of(Path::new(&format!("/proc/{pid}/exe")));
        Ok(matches!((running, of(&program)), (Ok(a), Ok(b)) if a == b))
    });
    same.await.unwrap_or(false)
}

async fn upgrade(
    shims: &[Arc<Shim>],
    process: &ShimProcess,
    options: &UpgradeOptions,
) -> UpgradeOutcome {
    let program = options.program.as_ref().unwrap_or(&process.program);
    match process.status {
        ShimStatus::Foreign => {
            let why = "it does not know live upgrades";
            return UpgradeOutcome::LeftAlone(why.to_owned());
        }
        ShimStatus::Degraded => return UpgradeOutcome::LeftAlone("it does not answer".to_owned()),
        ShimStatus::Current | ShimStatus::Outdated => {
            if !options.force && runs(process.pid, program).await {
                return UpgradeOutcome::LeftAlone("it runs the program already".to_owned());
            }
        }
    }
    let shim = &shims[0];
    let request =
        UpgradeRequest { program: program.display().to_string(), token: token(&shim.address) };
    let ctx = shim.context(Some(shim.config.deadlines.upgrade));
    let client = ShimClient::new(shim.connection().clone());
    match client.upgrade(&ctx, &request).await {
        Ok(answer) => {
            if let Err(err) = remember(shims, program).await {
                // The shim it was is there to clean up as well.
                tracing::warn!(id = shim.id, %err, "path of an upgraded shim");
            }
            UpgradeOutcome::Upgraded(answer.previous_version)
        }
        Err(err) => UpgradeOutcome::Failed(err),
    }
}

/// Notes the program that cleans up after a shim, should it die.
async fn remember(shims: &[Arc<Shim>], program: &Path) -> Result<()> {
    for shim in shims.iter().filter(|shim| shim.program != program) {
        let (bundle, program) = (shim.bundle.clone(), program.to_owned());
        blocking(move || bundle.set_shim_program(&program)).await?;
    }
    Ok(())
}

/// A name that no other request to this shim has.
fn token(address: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let (now, n) = (now.unwrap_or_default().as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{}-{now}-{n}-{address}", std::process::id())
}
