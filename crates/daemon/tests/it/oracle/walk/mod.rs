//! The services that keep records, call by call, refusals above all: the same calls on containerd 2
//! and on gantryd, whose answers must be the same to the letter, and refusals by their code, but for
//! [`DIFFERENCES`].

mod blobs;
mod holders;
mod pods;
mod records;
mod trees;

use std::fmt::Debug;

use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_testkit::Daemon;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::harness::{connect, in_ns, leased};

const NAMESPACE: &str = "walk";

/// The lease that keeps what a walk makes from the collector.
const LEASE: &str = "keep";

/// Calls that gantryd answers in its own way, by how their names begin, and why.
const DIFFERENCES: &[(&str, &str)] = &[
    ("update container [\"labels.\"]", "a mask that names no label is a mistake"),
    ("create namespace, empty label", "the answer has what was stored"),
    ("update namespace", "the answer has the namespace; containerd's has none"),
    ("delete namespace, bad name", "a class instead of Unknown"),
    ("create sandbox, long label", "labels of sandboxes have the same limit as all others"),
    ("update sandbox", "2.1 forgets the sandboxer, and changes the runtime's name"),
    ("write, no message", "a stream that ends before it has said anything is no error"),
    ("commit, bad digest", "digests are checked when they are told"),
    ("expect nonsense", "digests are checked when they are told"),
    ("unknown action", "what is unknown is refused"),
    ("list blobs size==", "sizes can be filtered"),
    ("update blob [\"labels.\"]", "a mask that names no label is a mistake"),
    ("update snapshot [\"labels.\"]", "a mask that names no label is a mistake"),
    ("commit of a view", "2.1 fails later, on the disk"),
    ("create lease, long label", "labels of leases have the same limit as all others"),
    ("add \"snapshots/\"", "a class instead of Unknown"),
    ("plugin snapshotter.v1 overlayfs", "2.1 knows no rebase"),
    ("plugin gc.v1 scheduler", "the delay after the start is told as well"),
    ("plugin runtime.v2 task", "2.1 does not tell the schemes"),
    ("plugin transfer.v1 local", "where hosts are configured is told as well"),
];

/// One daemon and what it has answered so far.
struct Walk {
    /// The daemon's process; it ends with the walk.
    _daemon: Daemon,
    channel: Channel,
    answers: Vec<(String, String)>,
}

impl Walk {
    async fn start(daemon: Daemon) -> Self {
        let channel = connect(&daemon.address().to_string_lossy()).await;
        let create = leases::CreateRequest { id: LEASE.into(), ..Default::default() };
        LeasesClient::new(channel.clone()).create(in_ns(NAMESPACE, create)).await.unwrap();
        Self { _daemon: daemon, channel, answers: Vec::new() }
    }

    /// Puts down what a call came to.
    fn note<T: Debug>(&mut self, call: &str, came_to: Result<Response<T>, Status>) {
        let text = match came_to {
            Ok(answer) => shown(answer.get_ref()),
            Err(status) => told(&status),
        };
        self.put(call, text);
    }

    fn put(&mut self, call: &str, text: String) {
        assert!(self.answers.iter().all(|(known, _)| known != call), "{call} twice");
        self.answers.push((call.to_owned(), text));
    }

    async fn all(mut self) -> Vec<(String, String)> {
        self.records().await;
        self.blobs().await;
        self.trees().await;
        self.holders().await;
        self.pods().await;
        self.answers
    }

    async fn isolated(mut self) -> Vec<(String, String)> {
        self.blobs().await;
        self.shared_by_some().await;
        self.answers
    }
}

/// An answer as text, without the times in it.
fn shown(answer: &impl Debug) -> String {
    let text = format!("{answer:?}");
    let mut parts = text.split("Timestamp {");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |shown, part| {
        shown + "TIME" + part.split_once('}').map_or("", |(_, rest)| rest)
    })
}

fn told(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// A request of the walk, under its lease.
fn ask<T>(message: T) -> Request<T> {
    leased(in_ns(NAMESPACE, message), LEASE)
}

fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() })
}

fn labels(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Filters that do not parse, each wrong in its own way.
const BAD_FILTERS: [&str; 12] = [
    "name===",
    "name==",
    "==x",
    "name=x",
    "name==a b",
    "name~=|a",
    "name==\"a",
    "name==/a/",
    "a..b==1",
    "name,",
    ",",
    "name!x",
];

/// What of an answer must be the same: all of it, but of a refusal its code. The texts of ours are
/// those of house (object, what was tried, why), and end in the class that the code stands for.
fn essence(text: &str) -> String {
    let code = |part: &str| {
        let (code, message) = part.split_once(": ")?;
        let known = CODES.iter().find(|known| **known == code)?;
        assert!(!message.is_empty(), "a refusal says why");
        Some((*known).to_owned())
    };
    let parts = text.lines().map(|part| code(part).unwrap_or_else(|| part.to_owned()));
    parts.collect::<Vec<_>>().join("\n")
}

const CODES: [&str; 11] = [
    "InvalidArgument",
    "NotFound",
    "AlreadyExists",
    "FailedPrecondition",
    "OutOfRange",
    "Unknown",
    "Unimplemented",
    "Unavailable",
    "Internal",
    "PermissionDenied",
    "DeadlineExceeded",
];

/// Checks that two daemons came to the same, but for [`DIFFERENCES`] and some `more`; returns those
/// there are.
fn compare(
    theirs: &[(String, String)],
    ours: &[(String, String)],
    more: &[(&'static str, &str)],
) -> Vec<&'static str> {
    assert_eq!(theirs.len(), ours.len());
    let (mut wrong, mut told) = (String::new(), Vec::new());
    for ((call, theirs), (_, ours)) in theirs.iter().zip(ours) {
        if essence(theirs) == essence(ours) {
            continue;
        }
        match DIFFERENCES.iter().chain(more).find(|(known, _)| call.starts_with(known)) {
            Some((known, _)) => told.push(*known),
            None => wrong += &format!("{call}\n  want {theirs}\n  got  {ours}\n"),
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn root_calls_come_to_what_they_come_to_on_containerd() {
    let theirs = Walk::start(Daemon::containerd2().start()).await.all().await;
    let ours = Walk::start(Daemon::gantryd().start()).await.all().await;
    let told = compare(&theirs, &ours, &[]);
    for (known, _) in DIFFERENCES {
        assert!(told.contains(known), "{known}: no difference any more");
    }
}

/// The calls about content once more, where no namespace has what another one brought.
#[tokio::test(flavor = "multi_thread")]
async fn root_isolated_content_is_what_it_is_on_containerd() {
    const MORE: &[(&str, &str)] =
        &[("ingests, shareable", "what a writer said it expects is told")];
    const ISOLATED: &str = "[plugins.\"io.containerd.metadata.v1.bolt\"]\n  \
        content_sharing_policy = \"isolated\"";
    let theirs = Walk::start(Daemon::containerd2().config(ISOLATED).start()).await;
    let ours = Walk::start(Daemon::gantryd().config(ISOLATED).start()).await;
    let told = compare(&theirs.isolated().await, &ours.isolated().await, MORE);
    assert!(MORE.iter().all(|(known, _)| told.contains(known)), "no difference any more");
}
