//! What the labels of a container say.

use gantry_core::Labels;

use crate::policy::Policy;

/// The state the container is to be in: `running` or `stopped`. Without it nothing is done.
pub const STATUS: &str = "containerd.io/restart.status";
/// When to start it again: see [`Policy`].
pub const POLICY: &str = "containerd.io/restart.policy";
/// How often it was started again; kept by the monitor.
pub const COUNT: &str = "containerd.io/restart.count";
/// Where its output goes: a URI (`file://`, `binary://`).
pub const LOG_URI: &str = "containerd.io/restart.loguri";
/// The same as the path of a file; clients before containerd 1.5 set it.
pub const LOG_PATH: &str = "containerd.io/restart.logpath";
/// `true` when its user stopped it.
pub const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";

/// `true` from before the old task is removed until the new one runs: a daemon that dies between
/// the two finds a container without a task, and this. Ours alone.
pub const PENDING: &str = "io.gantry/restart.pending";

/// The state a container is to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// Its task runs.
    Running,
    /// It has no task that runs.
    Stopped,
    /// Something that this version does not know; left alone.
    Other,
}

/// What a container's labels ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The state it is to be in.
    pub desired: Desired,
    /// When to start it again.
    pub policy: Policy,
    /// How often it was started again, without the start that is pending.
    pub count: u32,
    /// A start was begun and not seen to its end.
    pub pending: bool,
    /// Its user stopped it.
    pub explicitly_stopped: bool,
    /// URI for its output; empty for nowhere.
    pub log: String,
}

impl Wish {
    /// Reads the labels; none when they ask for nothing. A policy that nobody knows is like `no`,
    /// with a warning.
    pub fn read(labels: &Labels) -> Option<Self> {
        let desired = match labels.get(STATUS)?.as_str() {
            "running" => Desired::Running,
            "stopped" => Desired::Stopped,
            _ => Desired::Other,
        };
        let text = |key| labels.get(key).map_or("", String::as_str);
        let policy = text(POLICY).parse().unwrap_or_else(|err| {
            tracing::warn!("{POLICY}: {err}");
            Policy::No
        });
        let log = match (text(LOG_URI), text(LOG_PATH)) {
            ("", "") => String::new(),
            ("", path) => format!("file://{path}"),
            (uri, _) => uri.to_owned(),
        };
        let pending = is_true(text(PENDING));
        let count: u32 = text(COUNT).parse().unwrap_or(0);
        Some(Self {
            desired,
            policy,
            count: count.saturating_sub(u32::from(pending)),
            pending,
            explicitly_stopped: is_true(text(EXPLICITLY_STOPPED)),
            log,
        })
    }
}

/// The words clients write for true.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}
