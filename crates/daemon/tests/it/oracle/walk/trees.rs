//! Snapshots.

use gantry_api::containerd::services::snapshots::v1 as snapshots;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{BAD_FILTERS, NAMESPACE, Walk, ask, labels, mask};
use crate::harness::{in_ns, leased};

fn prepare(key: &str, parent: &str) -> snapshots::PrepareSnapshotRequest {
    snapshots::PrepareSnapshotRequest {
        snapshotter: "native".into(),
        key: key.into(),
        parent: parent.into(),
        labels: labels(&[("l", key)]),
    }
}

fn view(key: &str, parent: &str) -> snapshots::ViewSnapshotRequest {
    let prepare = prepare(key, parent);
    let snapshots::PrepareSnapshotRequest { snapshotter, key, parent, labels } = prepare;
    snapshots::ViewSnapshotRequest { snapshotter, key, parent, labels }
}

fn commit(name: &str, key: &str, parent: &str) -> snapshots::CommitSnapshotRequest {
    snapshots::CommitSnapshotRequest {
        snapshotter: "native".into(),
        name: name.into(),
        key: key.into(),
        parent: parent.into(),
        labels: labels(&[("c", "1")]),
    }
}

/// Where a snapshot is differs from daemon to daemon.
fn without_sources(
    came: Result<Response<Vec<gantry_api::containerd::types::Mount>>, Status>,
) -> Result<Response<Vec<String>>, Status> {
    came.map(|mounts| {
        let shown = mounts.into_inner().into_iter();
        Response::new(shown.map(|m| format!("{} {:?}", m.r#type, m.options)).collect())
    })
}

impl Walk {
    pub(super) async fn trees(&mut self) {
        let mut c = SnapshotsClient::new(self.channel.clone());
        self.making(&mut c).await;
        self.looking(&mut c).await;
        self.updating(&mut c).await;
        self.removing(&mut c).await;
    }

    async fn prepared(&mut self, call: &str, request: Request<snapshots::PrepareSnapshotRequest>) {
        let mut c = SnapshotsClient::new(self.channel.clone());
        let came = c.prepare(request).await.map(|r| Response::new(r.into_inner().mounts));
        self.note(call, without_sources(came));
    }

    async fn viewed(&mut self, call: &str, request: snapshots::ViewSnapshotRequest) {
        let mut c = SnapshotsClient::new(self.channel.clone());
        let came = c.view(ask(request)).await.map(|r| Response::new(r.into_inner().mounts));
        self.note(call, without_sources(came));
    }

    async fn making(&mut self, c: &mut SnapshotsClient<Channel>) {
        for name in ["", "nope", "zfs"] {
            let other =
                snapshots::PrepareSnapshotRequest { snapshotter: name.into(), ..prepare("a", "") };
            self.prepared(&format!("prepare by {name:?}"), ask(other)).await;
        }
        let unknown = leased(in_ns(NAMESPACE, prepare("a", "")), "nobody's");
        self.prepared("prepare, unknown lease", unknown).await;
        self.prepared("prepare, no parent", ask(prepare("a", "gone"))).await;
        let mut long = prepare("a", "");
        long.labels = labels(&[("key", &"v".repeat(4094))]);
        self.prepared("prepare, long label", ask(long)).await;
        self.prepared("prepare snapshot", ask(prepare("a", ""))).await;
        self.prepared("prepare twice", ask(prepare("a", ""))).await;
        self.prepared("prepare on an active one", ask(prepare("b", "a"))).await;
        self.viewed("view of an active one", view("b", "a")).await;
        self.note("commit of none", c.commit(ask(commit("base", "gone", ""))).await);
        let mut long = commit("base", "a", "");
        long.labels = labels(&[("key", &"v".repeat(4094))]);
        self.note("commit snapshot, long label", c.commit(ask(long)).await);
        self.note("commit snapshot", c.commit(ask(commit("base", "a", ""))).await);
        self.note("commit snapshot twice", c.commit(ask(commit("base2", "a", ""))).await);
        self.prepared("prepare on it", ask(prepare("b", "base"))).await;
        self.note("commit, taken name", c.commit(ask(commit("base", "b", ""))).await);
        self.note("commit onto itself", c.commit(ask(commit("b", "b", ""))).await);
        self.prepared("prepare, name of a committed one", ask(prepare("base", ""))).await;
        self.viewed("view", view("v", "base")).await;
        self.viewed("view twice", view("v", "base")).await;
        self.viewed("view, no parent", view("w", "gone")).await;
        self.viewed("view of nothing", view("w", "")).await;
        self.note("commit of a view", c.commit(ask(commit("x", "v", ""))).await);
        self.note("commit of a committed one", c.commit(ask(commit("x", "base", ""))).await);
        let mut named = prepare("named", "base");
        named.labels = labels(&[("containerd.io/snapshot.ref", "base")]);
        self.prepared("prepare, known target", ask(named)).await;
        let mut named = prepare("named", "base");
        named.labels = labels(&[("containerd.io/snapshot.ref", "unknown")]);
        self.prepared("prepare, unknown target", ask(named)).await;
        let elsewhere = in_ns("walk-other", prepare("z", "base"));
        self.prepared("prepare on another's", elsewhere).await;
    }

    async fn looking(&mut self, c: &mut SnapshotsClient<Channel>) {
        let stat = |key: &str| {
            ask(snapshots::StatSnapshotRequest { snapshotter: "native".into(), key: key.into() })
        };
        for key in ["b", "v", "base", "named", "gone", ""] {
            self.note(&format!("stat {key:?}"), c.stat(stat(key)).await);
            let request =
                snapshots::MountsRequest { snapshotter: "native".into(), key: key.into() };
            let came = c.mounts(ask(request)).await.map(|r| Response::new(r.into_inner().mounts));
            self.note(&format!("mounts {key:?}"), without_sources(came));
        }
        let other = snapshots::StatSnapshotRequest { snapshotter: "nope".into(), key: "b".into() };
        self.note("stat by none", c.stat(ask(other)).await);
        let usage = |key: &str| {
            ask(snapshots::UsageRequest { snapshotter: "native".into(), key: key.into() })
        };
        self.note("usage of none", c.usage(usage("gone")).await);
        self.note("usage, no key", c.usage(usage("")).await);
        let cleanup = |name: &str| ask(snapshots::CleanupRequest { snapshotter: name.into() });
        for name in ["native", "overlayfs", "nope"] {
            self.note(&format!("cleanup {name}"), c.cleanup(cleanup(name)).await);
        }
        let good = [
            "name==b",
            "parent==base,kind==view",
            "kind==active,name==b",
            "kind==committed",
            "labels.l==b",
            "labels.x",
            "x!=1,name==b",
        ];
        for filter in good.into_iter().chain(BAD_FILTERS) {
            let list = snapshots::ListSnapshotsRequest {
                snapshotter: "native".into(),
                filters: vec![filter.into()],
            };
            let came = match c.list(ask(list)).await {
                Ok(mut pages) => pages.get_mut().message().await.map(Response::new),
                Err(status) => Err(status),
            };
            self.note(&format!("list snapshots {filter}"), came);
        }
    }

    async fn updating(&mut self, c: &mut SnapshotsClient<Channel>) {
        let update = |name: &str, paths: &[&str]| {
            let info = snapshots::Info {
                name: name.into(),
                labels: labels(&[("l", "2")]),
                ..Default::default()
            };
            let update_mask = (!paths.is_empty()).then(|| mask(paths).unwrap());
            ask(snapshots::UpdateSnapshotRequest {
                snapshotter: "native".into(),
                info: Some(info),
                update_mask,
            })
        };
        for paths in [
            &["labels.l"][..],
            &["labels.x"],
            &["labels"],
            &["labels."],
            &["parent"],
            &["kind"],
            &["name"],
            &["nonsense"],
            &["labels.l", "kind"],
            &[],
        ] {
            self.note(&format!("update snapshot {paths:?}"), c.update(update("b", paths)).await);
        }
        self.note("update snapshot, none", c.update(update("gone", &["labels"])).await);
        self.note("update snapshot, no name", c.update(update("", &["labels"])).await);
    }

    async fn removing(&mut self, c: &mut SnapshotsClient<Channel>) {
        let remove = |key: &str| {
            ask(snapshots::RemoveSnapshotRequest { snapshotter: "native".into(), key: key.into() })
        };
        self.note("remove snapshot, has children", c.remove(remove("base")).await);
        self.note("remove snapshot, none", c.remove(remove("gone")).await);
        self.note("remove snapshot, no key", c.remove(remove("")).await);
        self.note("remove", c.remove(remove("v")).await);
        self.note("remove again", c.remove(remove("v")).await);
    }
}
