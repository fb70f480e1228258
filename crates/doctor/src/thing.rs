//! The things that can be wrong, each with what is needed to mend it.

use std::path::PathBuf;

use gantry_metadata::{BadBlob, BadLayer, Orphan};
use gantry_runtime::{Leftover, LeftoverKind};

use crate::finding::{Finding, State};
use crate::machine::Cgroup;

/// Something orphaned or damaged.
#[derive(Clone, Debug)]
pub(crate) enum Thing {
    Blob(BadBlob),
    Layer(BadLayer),
    Orphan(Orphan),
    Leftover(Leftover),
    TempMount(PathBuf),
    Cgroup(Cgroup),
    FifoDir(PathBuf),
}

impl Thing {
    /// What tells it from others.
    pub(crate) fn name(&self) -> (&'static str, String, String) {
        let finding = self.finding();
        (finding.kind, finding.namespace, finding.id)
    }

    pub(crate) fn finding(&self) -> Finding {
        match self {
            Self::Blob(bad) => {
                let (namespaces, id) = (bad.namespaces.join(","), bad.digest.to_string());
                let remedy = "dropped with its records, so that the next pull fetches it";
                damaged("blob", namespaces, id, &bad.reason, remedy)
            }
            Self::Layer(bad) => {
                let remedy = if bad.origin.is_some() {
                    "unpacked again from its blob"
                } else {
                    "removed, so that the next pull unpacks it: its blob is not here"
                };
                damaged("snapshot", bad.namespace.clone(), bad.key.clone(), &bad.reason, remedy)
            }
            Self::Orphan(orphan) => orphan_finding(orphan),
            Self::Leftover(left) => leftover_finding(left),
            Self::TempMount(path) => orphan(
                "mount",
                String::new(),
                path.display().to_string(),
                "a temporary mount that could not be unmounted when its work was done",
                "unmounted and removed",
            ),
            Self::Cgroup(cgroup) => orphan(
                "cgroup",
                cgroup.namespace.clone(),
                cgroup.id.clone(),
                "no container or task of this name, and no process in it: the runtime did not \
                 get to remove it",
                "removed",
            ),
            Self::FifoDir(dir) => orphan(
                "fifo",
                String::new(),
                dir.display().to_string(),
                "no task names it and no process has it open: the client that made it was killed",
                "removed",
            ),
        }
    }
}

fn orphan_finding(found: &Orphan) -> Finding {
    let none = String::new;
    match found {
        Orphan::Blob(digest) => orphan(
            "blob",
            none(),
            digest.clone(),
            "no namespace holds it: a crash came before its record, or after its removal",
            "deleted",
        ),
        Orphan::Ingest(reference) => orphan(
            "ingest",
            none(),
            reference.clone(),
            "no record names it and nobody writes it: its writer was cut off",
            "deleted",
        ),
        Orphan::Snapshot { snapshotter, name } => orphan(
            "snapshot",
            none(),
            format!("{snapshotter} {name}"),
            "no namespace has a record of it: a crash came before its record, or after its removal",
            "deleted",
        ),
        Orphan::SnapshotRecord { snapshotter, name } => damaged(
            "snapshot",
            none(),
            format!("{snapshotter} {name}"),
            "its snapshotter does not have it any more",
            "its record is removed, so that the next pull makes it",
        ),
        Orphan::Directory { stray, .. } => {
            orphan("snapshot", none(), stray.path.clone(), &stray.reason, "deleted")
        }
        Orphan::Lease { namespace, id } => orphan(
            "lease",
            namespace.clone(),
            id.clone(),
            "its time has passed and no collection has taken it",
            "collected",
        ),
    }
}

fn leftover_finding(left: &Leftover) -> Finding {
    let (kind, reason, remedy) = match left.kind {
        LeftoverKind::Bundle => (
            "bundle",
            "no task has it: its removal failed, or its maker was cut off",
            "its shim is found again, or cleaned up after and the bundle removed",
        ),
        LeftoverKind::Work => {
            ("bundle", "the work directory of a task whose bundle is gone", "removed")
        }
        LeftoverKind::Mount => {
            ("mount", "the root of a task that does not exist: unmounting it failed", "unmounted")
        }
        LeftoverKind::Shim => (
            "shim",
            "it was started for this daemon, and its bundle is gone",
            "killed with what it runs: nobody can reach it",
        ),
        LeftoverKind::Socket => ("socket", "nobody listens: its shim was killed", "removed"),
    };
    let mut id = left.what.clone();
    if left.kind == LeftoverKind::Shim {
        id = format!("{id} of {}", left.id);
    }
    orphan(kind, left.namespace.clone(), id, reason, remedy)
}

fn orphan(
    kind: &'static str,
    namespace: String,
    id: String,
    reason: &str,
    remedy: &'static str,
) -> Finding {
    let (fixed, error) = (false, String::new());
    let reason = reason.to_owned();
    Finding { kind, namespace, id, state: State::Orphan, reason, remedy, fixed, error }
}

fn damaged(
    kind: &'static str,
    namespace: String,
    id: String,
    reason: &str,
    remedy: &'static str,
) -> Finding {
    Finding { state: State::Damaged, ..orphan(kind, namespace, id, reason, remedy) }
}
