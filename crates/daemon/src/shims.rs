//! What the runtime must know of this daemon and its configuration.

use std::path::{Path, PathBuf};

use gantry_runtime::{Config as RuntimeConfig, Deadlines, Manager, UpgradeOptions, UpgradeOutcome};
use gantry_services::COMPAT_VERSION;
use tracing::warn;

use crate::config::Config;

/// Directory of the runtime below root and state; containerd's own place.
const DIR: &str = "io.containerd.runtime.v2.task";

/// The same for sandboxes that shims keep themselves.
const SANDBOX_DIR: &str = "io.containerd.sandbox.controller.v1.shim";

/// Longest directory for shim sockets, in bytes: a socket's path has 107, of which the name of a
/// shim's socket and the words around it take the rest.
const SOCKET_DIR_LEN_MAX: usize = 38;

/// Where shim sockets go when the state directory is too deep for them.
const SOCKET_DIR_FALLBACK: &str = "/run/gantry/s";

/// The daemon's program, which publishes events for shims that know no ttrpc.
const PROGRAM: &str = "gantryd";

/// The runtime's configuration.
pub(crate) fn config(config: &Config) -> RuntimeConfig {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(PROGRAM));
    let shim_dir = program.parent().map(Path::to_owned);
    RuntimeConfig {
        root: config.root.join(DIR),
        state: config.state.join(DIR),
        sandbox_root: config.root.join(SANDBOX_DIR),
        sandbox_state: config.state.join(SANDBOX_DIR),
        grpc_address: config.address().to_owned(),
        ttrpc_address: config.ttrpc_address(),
        publish_binary: publish_binary(program),
        shim_dir,
        socket_dir: socket_dir(config),
        version: COMPAT_VERSION.to_owned(),
        debug: matches!(config.debug.level.as_str(), "debug" | "trace"),
        env: environment(&config.plugins.shim.env),
        deadlines: deadlines(config),
    }
}

/// Has the shims of an earlier run execute the program that is installed, where it is another one.
pub(crate) async fn upgrade(manager: Manager) {
    manager.loaded().await;
    for (shim, outcome) in manager.upgrade(&UpgradeOptions::default()).await {
        let (namespace, tasks) = (shim.namespace.as_str(), shim.tasks.join(","));
        match outcome {
            UpgradeOutcome::LeftAlone(why) => {
                tracing::debug!(namespace, tasks, why, "shim left alone");
            }
            UpgradeOutcome::Upgraded(from) => {
                tracing::info!(namespace, tasks, pid = shim.pid, from, "shim upgraded");
            }
            UpgradeOutcome::Failed(err) => warn!(namespace, tasks, %err, "shim not upgraded"),
        }
    }
}

/// The daemon embedded in another program has its own program beside that one.
fn publish_binary(current: PathBuf) -> PathBuf {
    let beside = current.with_file_name(PROGRAM);
    if beside.exists() { beside } else { current }
}

fn socket_dir(config: &Config) -> PathBuf {
    let configured = &config.plugins.shim.socket_dir;
    let dir =
        if configured.is_empty() { config.state.join("s") } else { PathBuf::from(configured) };
    if dir.as_os_str().len() <= SOCKET_DIR_LEN_MAX {
        return dir;
    }
    if !configured.is_empty() {
        warn!(dir = %dir.display(), max = SOCKET_DIR_LEN_MAX, "socket_dir is too long");
    }
    PathBuf::from(SOCKET_DIR_FALLBACK)
}

fn environment(lines: &[String]) -> Vec<(String, String)> {
    lines
        .iter()
        .filter_map(|line| match line.split_once('=') {
            Some((key, value)) if !key.is_empty() => Some((key.to_owned(), value.to_owned())),
            _ => {
                warn!(line, "shim environment: expect KEY=VALUE");
                None
            }
        })
        .collect()
}

fn deadlines(config: &Config) -> Deadlines {
    let d = Deadlines::default();
    Deadlines {
        load: config.timeout("shim.load", d.load),
        cleanup: config.timeout("shim.cleanup", d.cleanup),
        shutdown: config.timeout("shim.shutdown", d.shutdown),
        state: config.timeout("task.state", d.state),
        stats: config.timeout("metrics.shimstats", d.stats),
        ..d
    }
}
