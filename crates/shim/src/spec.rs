//! The few fields of `config.json` that the shim looks at, and the two it may have to change.
//!
//! Everything else is skipped unread: the runtime reads the file itself.

use std::collections::HashMap;
use std::path::Path;

use gantry_errdefs::{Error, Result, ResultExt as _};
use rustix::process::{Resource, getrlimit};
use serde::Deserialize;
use serde_json::Value;

use crate::log::warning;

/// Annotations that name the group a container belongs to, the strongest first: all containers of
/// one group share one shim.
const GROUP_ANNOTATIONS: [&str; 2] =
    ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The parsed part of an OCI runtime spec.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Spec {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    process: Option<Process>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    #[serde(default)]
    oom_score_adj: Option<i32>,
    #[serde(default)]
    rlimits: Option<Vec<Rlimit>>,
    #[serde(default)]
    apparmor_profile: Option<String>,
    #[serde(default)]
    selinux_label: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Rlimit {
    #[serde(rename = "type")]
    kind: String,
    hard: u64,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<String>,
}

impl Spec {
    /// Reads `bundle/config.json`.
    ///
    /// # Errors
    /// The file cannot be read or is not a spec.
    pub(crate) fn load(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let text = std::fs::read(&path).context(|| path.display().to_string())?;
        serde_json::from_slice(&text)
            .map_err(|err| Error::invalid_argument(format!("{}: {err}", path.display())))
    }

    /// The group of containers that share a shim.
    pub(crate) fn group(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        GROUP_ANNOTATIONS
            .iter()
            .find_map(|name| annotations.get(*name))
            .map(String::as_str)
            .filter(|group| !group.is_empty())
    }

    /// Whether the init is the first process of a pid namespace of its own, so that the kernel
    /// kills the rest of the container with it.
    pub(crate) fn owns_pid_namespace(&self) -> bool {
        self.namespaces().any(|ns| ns.kind == "pid" && ns.path.as_deref().unwrap_or("").is_empty())
    }

    /// Whether the container has a user namespace.
    pub(crate) fn has_user_namespace(&self) -> bool {
        self.namespaces().any(|ns| ns.kind == "user")
    }

    /// Whether a security module decides by label or path what the container may write to.
    pub(crate) fn is_labelled(&self) -> bool {
        let Some(process) = &self.process else { return false };
        let set = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
        set(&process.selinux_label)
            || (set(&process.apparmor_profile)
                && process.apparmor_profile.as_deref() != Some("unconfined"))
    }

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.linux.iter().flat_map(|linux| linux.namespaces.iter().flatten())
    }

    /// Rewrites `bundle/config.json` where it asks for what this process may not give: without
    /// CAP_SYS_RESOURCE a lower OOM score or a higher hard limit would fail the container. A
    /// warning says what was changed. Nothing is written when nothing needs it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn clamp(&self, bundle: &Path) -> Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        let score = process.oom_score_adj.and_then(|wanted| possible_score(wanted).err());
        let mut rlimits: Vec<(&str, u64)> = (process.rlimits.iter().flatten())
            .filter_map(|limit| Some((limit.kind.as_str(), hard_limit(&limit.kind)?, limit.hard)))
            .filter(|(_, ours, wanted)| wanted > ours)
            .map(|(kind, ours, _)| (kind, ours))
            .collect();
        if !rlimits.is_empty() && may_raise_limits() {
            rlimits.clear();
        }
        if score.is_none() && rlimits.is_empty() {
            return Ok(());
        }
        rewrite(&bundle.join("config.json"), score, &rlimits)
    }
}

/// Whether an OOM score can be set from here, by trying; the error is the score to use instead.
fn possible_score(wanted: i32) -> std::result::Result<(), i32> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let Some(ours) = std::fs::read_to_string(PATH).ok().and_then(|t| t.trim().parse().ok()) else {
        return Ok(());
    };
    if wanted >= ours {
        return Ok(());
    }
    let tried = std::fs::write(PATH, wanted.to_string());
    if tried.is_ok() {
        // Raising it again is always allowed.
        let _ = std::fs::write(PATH, ours.to_string());
        return Ok(());
    }
    Err(ours)
}

fn may_raise_limits() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE))
}

/// Our own hard limit; none when it is unlimited or the kind is unknown.
fn hard_limit(kind: &str) -> Option<u64> {
    let resource = match kind {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    };
    getrlimit(resource).maximum
}

fn rewrite(path: &Path, score: Option<i32>, rlimits: &[(&str, u64)]) -> Result<()> {
    let name = || path.display().to_string();
    let text = std::fs::read(path).context(name)?;
    let mut spec: Value = serde_json::from_slice(&text)
        .map_err(|err| Error::invalid_argument(format!("{}: {err}", path.display())))?;
    if let Some(score) = score {
        warning!("no CAP_SYS_RESOURCE: oomScoreAdj raised to {score}");
        spec["process"]["oomScoreAdj"] = score.into();
    }
    for limit in spec["process"]["rlimits"].as_array_mut().into_iter().flatten() {
        let kind = limit["type"].as_str().unwrap_or_default();
        let Some((kind, ours)) = rlimits.iter().find(|(k, _)| *k == kind) else { continue };
        warning!("no CAP_SYS_RESOURCE: {kind} lowered to {ours}");
        let soft = limit["soft"].as_u64().unwrap_or(0).min(*ours);
        limit["hard"] = (*ours).into();
        limit["soft"] = soft.into();
    }
    let temporary = path.with_extension("json.tmp");
    gantry_failpoint::hit("shim.spec").context(name)?;
    std::fs::write(&temporary, spec.to_string()).context(name)?;
    std::fs::rename(&temporary, path).context(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).expect("a spec")
    }

    #[test]
    fn groups_come_from_annotations() {
        let pod = spec(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#);
        assert_eq!(pod.group(), Some("pod"));
        let both = spec(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod",
                "io.containerd.runc.v2.group":"mine"}}"#,
        );
        assert_eq!(both.group(), Some("mine"));
        assert_eq!(spec("{}").group(), None);
        assert_eq!(spec(r#"{"annotations":null}"#).group(), None);
    }

    #[test]
    fn pid_namespaces() {
        let own = spec(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#);
        assert!(own.owns_pid_namespace());
        let joined = spec(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#);
        assert!(!joined.owns_pid_namespace());
        assert!(!spec(r#"{"linux":{}}"#).owns_pid_namespace());
    }

    #[test]
    fn limits_above_ours_are_lowered_and_nothing_else_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        let text = r#"{"process":{"args":["x"],"rlimits":[
            {"type":"RLIMIT_NOFILE","hard":9,"soft":9},{"type":"RLIMIT_CORE","hard":7,"soft":7}]}}"#;
        std::fs::write(&path, text).expect("written");
        rewrite(&path, Some(5), &[("RLIMIT_NOFILE", 3)]).expect("rewritten");
        let out: Value =
            serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("json");
        assert_eq!(out["process"]["oomScoreAdj"], 5);
        assert_eq!(out["process"]["rlimits"][0]["hard"], 3);
        assert_eq!(out["process"]["rlimits"][0]["soft"], 3);
        assert_eq!(out["process"]["rlimits"][1]["hard"], 7);
        assert_eq!(out["process"]["args"][0], "x");
    }
}
