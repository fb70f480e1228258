//! Codes and texts of refused calls, service by service: what clients branch on.

use gantry_api::containerd::services as api;
use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::content::v1 as content;
use gantry_api::containerd::services::diff::v1 as diff;
use gantry_api::containerd::services::images::v1 as images;
use gantry_api::containerd::services::introspection::v1 as introspection;
use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::mounts::v1 as mounts;
use gantry_api::containerd::services::namespaces::v1 as namespaces;
use gantry_api::containerd::services::sandbox::v1 as sandbox;
use gantry_api::containerd::services::snapshots::v1 as snapshots;
use gantry_api::containerd::services::tasks::v1 as tasks;
use gantry_api::containerd::types::{Descriptor, Sandbox};
use prost_types::FieldMask;
use tonic::Code::{
    AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown,
};
use tonic::Request;

use crate::harness::{Harness, in_ns, leased, ns, refused};

/// Calls a method of a client in the test's namespace and checks how it is refused.
macro_rules! refuse {
    ($client:ident . $method:ident($message:expr), $code:ident, $words:expr) => {
        refused($client.$method(ns($message)).await, $code, $words)
    };
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() })
}

const BAD_FILTER: &str = "name===";

fn bad_filter() -> Vec<String> {
    vec![BAD_FILTER.to_owned()]
}

const EMPTY_DIGEST: &str =
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_needed() {
    let daemon = Harness::start().await;
    let mut c = api::containers::v1::containers_client::ContainersClient::new(daemon.channel());
    let list = containers::ListContainersRequest::default;
    let none = c.list(Request::new(list())).await;
    refused(none, FailedPrecondition, "namespace is required");
    for bad in ["-a", "a/b", "a..b", &"a".repeat(77)] {
        refused(c.list(in_ns(bad, list())).await, InvalidArgument, "namespace");
    }
    let mut t = api::tasks::v1::tasks_client::TasksClient::new(daemon.channel());
    let none = t.list(Request::new(tasks::ListTasksRequest::default())).await;
    refused(none, FailedPrecondition, "namespace is required");
    let mut n = api::namespaces::v1::namespaces_client::NamespacesClient::new(daemon.channel());
    assert!(n.list(Request::new(namespaces::ListNamespacesRequest::default())).await.is_ok());
    daemon.stop().await;
}

fn container(id: &str) -> containers::Container {
    let runtime = containers::container::Runtime { name: "r".to_owned(), options: None };
    containers::Container { id: id.to_owned(), runtime: Some(runtime), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_refuse() {
    use containers::{
        CreateContainerRequest as Create, DeleteContainerRequest as Delete,
        GetContainerRequest as Get, ListContainersRequest as List,
        UpdateContainerRequest as Update,
    };
    let daemon = Harness::start().await;
    let mut c = containers::containers_client::ContainersClient::new(daemon.channel());
    let create = |c| Create { container: Some(c) };
    refuse!(c.create(Create::default()), InvalidArgument, "container");
    refuse!(c.create(create(container("a b"))), InvalidArgument, "a b");
    refuse!(c.create(create(container(""))), InvalidArgument, "");
    let bare = containers::Container { id: "a".into(), ..Default::default() };
    refuse!(c.create(create(bare)), InvalidArgument, "runtime");
    let mut long = container("a");
    long.labels = [("k".to_owned(), "v".repeat(4096))].into();
    refuse!(c.create(create(long)), InvalidArgument, "label");
    let half = containers::Container { snapshot_key: "k".into(), ..container("a") };
    refuse!(c.create(create(half)), InvalidArgument, "snapshotter");

    c.create(ns(create(container("a")))).await.unwrap();
    refuse!(c.create(create(container("a"))), AlreadyExists, "already exists");
    refuse!(c.get(Get { id: "b".into() }), NotFound, "not found");
    refuse!(c.delete(Delete { id: "b".into() }), NotFound, "not found");
    refuse!(c.list(List { filters: bad_filter() }), InvalidArgument, "");
    refused(c.list_stream(ns(List { filters: bad_filter() })).await, InvalidArgument, "");

    let update = |id: &str, paths: &[&str]| Update {
        container: Some(container(id)),
        update_mask: mask(paths),
    };
    refuse!(c.update(update("b", &["labels"])), NotFound, "not found");
    refuse!(c.update(update("a", &["snapshot_key"])), InvalidArgument, "snapshot_key");
    refuse!(c.update(update("a", &["runtime"])), InvalidArgument, "runtime");
    let mut other = update("a", &[]);
    other.container.as_mut().unwrap().runtime.as_mut().unwrap().name = "other".into();
    refuse!(c.update(other), InvalidArgument, "");
    assert!(c.get(in_ns("elsewhere", Get { id: "a".into() })).await.is_err());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_refuse() {
    use images::{
        CreateImageRequest as Create, DeleteImageRequest as Delete, GetImageRequest as Get, Image,
        ListImagesRequest as List, UpdateImageRequest as Update,
    };
    let daemon = Harness::start().await;
    let mut c = images::images_client::ImagesClient::new(daemon.channel());
    let target = || Descriptor {
        media_type: "m".into(),
        digest: EMPTY_DIGEST.into(),
        size: 1,
        ..Default::default()
    };
    let image =
        |name: &str| Image { name: name.into(), target: Some(target()), ..Default::default() };
    let create = |image| Create { image: Some(image), source_date_epoch: None };
    refuse!(c.create(Create::default()), InvalidArgument, "image");
    refuse!(c.create(create(image(""))), InvalidArgument, "name");
    refuse!(c.create(create(Image { target: None, ..image("a") })), InvalidArgument, "target");
    for broken in [
        Descriptor { digest: "x".into(), ..target() },
        Descriptor { size: 0, ..target() },
        Descriptor { media_type: String::new(), ..target() },
    ] {
        let broken = Image { target: Some(broken), ..image("a") };
        refuse!(c.create(create(broken)), InvalidArgument, "");
    }
    c.create(ns(create(image("a")))).await.unwrap();
    refuse!(c.create(create(image("a"))), AlreadyExists, "already exists");
    refuse!(c.get(Get { name: "b".into() }), NotFound, "not found");
    refuse!(c.list(List { filters: bad_filter() }), InvalidArgument, "");
    let update = |name: &str, paths: &[&str]| Update {
        image: Some(image(name)),
        update_mask: mask(paths),
        source_date_epoch: None,
    };
    refuse!(c.update(update("b", &["labels"])), NotFound, "not found");
    refuse!(c.update(update("a", &["name"])), InvalidArgument, "name");
    refuse!(c.delete(Delete { name: "b".into(), ..Default::default() }), NotFound, "not found");
    let other = Descriptor { digest: format!("sha256:{}", "0".repeat(64)), ..target() };
    let guarded = Delete { name: "a".into(), target: Some(other), sync: false };
    refuse!(c.delete(guarded), NotFound, "");
    c.delete(ns(Delete { name: "a".into(), sync: true, target: Some(target()) })).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_refuse() {
    use leases::{
        AddResourceRequest as Add, CreateRequest as Create, DeleteRequest as Delete,
        DeleteResourceRequest as Drop, ListRequest as List, ListResourcesRequest as Members,
        Resource,
    };
    let daemon = Harness::start().await;
    let mut c = leases::leases_client::LeasesClient::new(daemon.channel());
    let create = |id: &str| Create { id: id.into(), ..Default::default() };
    let made = c.create(ns(create(""))).await.unwrap().into_inner().lease.unwrap();
    assert!(made.id.contains('-'), "invented: {}", made.id);
    c.create(ns(create("l"))).await.unwrap();
    refuse!(c.create(create("l")), AlreadyExists, "already exists");
    refuse!(c.delete(Delete { id: "x".into(), sync: false }), NotFound, "");
    refuse!(c.list(List { filters: bad_filter() }), InvalidArgument, "");
    refuse!(c.list_resources(Members { id: "x".into() }), NotFound, "");
    let resource = |kind: &str| Some(Resource { id: "any".into(), r#type: kind.into() });
    let add = |id: &str, kind: &str| Add { id: id.into(), resource: resource(kind) };
    refuse!(c.add_resource(add("x", "images")), NotFound, "");
    refuse!(c.add_resource(add("l", "colours")), Unimplemented, "colours");
    refuse!(c.add_resource(add("l", "snapshots")), InvalidArgument, "snapshots");
    refuse!(c.add_resource(Add { id: "l".into(), resource: None }), InvalidArgument, "resource");
    c.add_resource(ns(add("l", "snapshots/overlayfs"))).await.unwrap();
    let drop = |kind: &str| Drop { id: "l".into(), resource: resource(kind) };
    c.delete_resource(ns(drop("images"))).await.expect("an absent member is fine");
    refuse!(c.delete_resource(drop("colours")), Unimplemented, "colours");

    let mut s = snapshots::snapshots_client::SnapshotsClient::new(daemon.channel());
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: "native".into(),
        key: "k".into(),
        ..Default::default()
    };
    let call = s.prepare(leased(ns(prepare), "gone")).await;
    refused(call, NotFound, "lease does not exist");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_refuse() {
    use namespaces::{
        CreateNamespaceRequest as Create, DeleteNamespaceRequest as Delete,
        GetNamespaceRequest as Get, Namespace, UpdateNamespaceRequest as Update,
    };
    let daemon = Harness::start().await;
    let mut c = namespaces::namespaces_client::NamespacesClient::new(daemon.channel());
    let namespace = |name: &str| Some(Namespace { name: name.into(), ..Default::default() });
    let create = |name: &str| Create { namespace: namespace(name) };
    c.create(create("a")).await.unwrap();
    refused(c.create(create("a")).await, AlreadyExists, "already exists");
    refused(c.create(create("a/b")).await, InvalidArgument, "");
    refused(c.create(Create::default()).await, InvalidArgument, "namespace");
    let unknown = c.get(Get { name: "nobody".into() }).await.expect("never NotFound");
    assert!(unknown.into_inner().namespace.unwrap().labels.is_empty());
    let update = |path: &str| Update { namespace: namespace("a"), update_mask: mask(&[path]) };
    refused(c.update(update("name")).await, InvalidArgument, "name");
    refused(c.update(update("labels")).await, InvalidArgument, "labels");
    c.update(Update { namespace: namespace("new"), update_mask: mask(&["labels.x"]) })
        .await
        .expect("an update makes the namespace");
    refused(c.delete(Delete { name: "x".into() }).await, NotFound, "not found");

    let mut containers = containers::containers_client::ContainersClient::new(daemon.channel());
    let create = containers::CreateContainerRequest { container: Some(container("c")) };
    containers.create(in_ns("a", create)).await.unwrap();
    let busy = c.delete(Delete { name: "a".into() }).await;
    refused(busy, FailedPrecondition, "must be empty, but it still has containers");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_refuses() {
    let daemon = Harness::start().await;
    let mut c = content::content_client::ContentClient::new(daemon.channel());
    let digest = || EMPTY_DIGEST.to_owned();
    refuse!(c.info(content::InfoRequest { digest: "sha256:x".into() }), InvalidArgument, "");
    refuse!(c.info(content::InfoRequest { digest: digest() }), NotFound, "not found");
    let read = content::ReadContentRequest { digest: digest(), ..Default::default() };
    refused(c.read(ns(read)).await, NotFound, "not found");
    let list = content::ListContentRequest { filters: bad_filter() };
    refused(c.list(ns(list)).await, InvalidArgument, "");
    refuse!(c.update(content::UpdateRequest::default()), InvalidArgument, "info");
    let statuses = content::ListStatusesRequest { filters: bad_filter() };
    refuse!(c.list_statuses(statuses), InvalidArgument, "");
    refuse!(c.status(content::StatusRequest { r#ref: "r".into() }), NotFound, "not found");
    refuse!(c.abort(content::AbortRequest { r#ref: "r".into() }), NotFound, "not found");
    refuse!(c.delete(content::DeleteContentRequest { digest: digest() }), NotFound, "not found");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_refuse() {
    use snapshots::{
        CommitSnapshotRequest as Commit, MountsRequest, PrepareSnapshotRequest as Prepare,
        RemoveSnapshotRequest as Remove, StatSnapshotRequest as Stat, ViewSnapshotRequest as View,
    };
    let daemon = Harness::start().await;
    let mut c = snapshots::snapshots_client::SnapshotsClient::new(daemon.channel());
    let native = || "native".to_owned();
    // The first collection may come at any time here.
    let kept = || [("containerd.io/gc.root".to_owned(), "yes".to_owned())].into();
    let prepare = |key: &str, parent: &str| Prepare {
        snapshotter: native(),
        key: key.into(),
        parent: parent.into(),
        labels: kept(),
    };
    let commit = |name: &str, key: &str| Commit {
        snapshotter: native(),
        name: name.into(),
        key: key.into(),
        labels: kept(),
        ..Default::default()
    };
    let unknown = Prepare { snapshotter: "nope".into(), ..prepare("a", "") };
    refuse!(c.prepare(unknown), InvalidArgument, "snapshotter not loaded");
    refuse!(c.prepare(prepare("a", "gone")), NotFound, "");
    c.prepare(ns(prepare("a", ""))).await.unwrap();
    refuse!(c.prepare(prepare("a", "")), AlreadyExists, "");
    refuse!(c.prepare(prepare("b", "a")), InvalidArgument, "");
    c.commit(ns(commit("base", "a"))).await.unwrap();
    c.prepare(ns(prepare("b", "base"))).await.unwrap();
    refuse!(c.commit(commit("base", "b")), AlreadyExists, "");
    refuse!(c.commit(commit("x", "gone")), NotFound, "");
    let view =
        View { snapshotter: native(), key: "v".into(), parent: "base".into(), labels: kept() };
    c.view(ns(view)).await.unwrap();
    refuse!(c.commit(commit("x", "v")), FailedPrecondition, "");
    let mounts = |key: &str| MountsRequest { snapshotter: native(), key: key.into() };
    refuse!(c.mounts(mounts("base")), FailedPrecondition, "");
    refuse!(c.mounts(mounts("gone")), NotFound, "");
    let remove = |key: &str| Remove { snapshotter: native(), key: key.into() };
    refuse!(c.remove(remove("base")), FailedPrecondition, "");
    refuse!(c.remove(remove("gone")), NotFound, "");
    refuse!(c.stat(Stat { snapshotter: native(), key: "gone".into() }), NotFound, "");
    let list = snapshots::ListSnapshotsRequest { snapshotter: native(), filters: bad_filter() };
    refused(c.list(ns(list)).await, Unknown, "");
    refuse!(c.cleanup(snapshots::CleanupRequest { snapshotter: native() }), Unimplemented, "");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_refuse() {
    let daemon = Harness::start().await;
    let mut c = tasks::tasks_client::TasksClient::new(daemon.channel());
    let mut containers = containers::containers_client::ContainersClient::new(daemon.channel());
    let create = containers::CreateContainerRequest { container: Some(container("c")) };
    containers.create(ns(create)).await.unwrap();
    let get = |id: &str| tasks::GetRequest { container_id: id.into(), exec_id: String::new() };
    refuse!(c.get(get("gone")), NotFound, "container");
    refuse!(c.get(get("c")), NotFound, "task c not found");
    let start = tasks::StartRequest { container_id: "c".into(), exec_id: String::new() };
    refuse!(c.start(start), NotFound, "task c not found");
    let kill = tasks::KillRequest { container_id: "c".into(), signal: 9, ..Default::default() };
    refuse!(c.kill(kill), NotFound, "not found");
    refuse!(c.delete(tasks::DeleteTaskRequest { container_id: "c".into() }), NotFound, "not found");
    let wait = tasks::WaitRequest { container_id: "c".into(), exec_id: String::new() };
    refuse!(c.wait(wait), NotFound, "not found");
    let exec = |id: &str| tasks::ExecProcessRequest {
        container_id: "c".into(),
        exec_id: id.into(),
        ..Default::default()
    };
    refuse!(c.exec(exec("")), InvalidArgument, "");
    refuse!(c.exec(exec("a/b")), InvalidArgument, "a/b");
    refuse!(c.exec(exec("e")), NotFound, "not found");
    let create =
        |id: &str| tasks::CreateTaskRequest { container_id: id.into(), ..Default::default() };
    refuse!(c.create(create("gone")), NotFound, "container");
    let metrics = tasks::MetricsRequest { filters: bad_filter() };
    refuse!(c.metrics(metrics), Unknown, "");
    let found = c.list(ns(tasks::ListTasksRequest { filter: "anything".into() })).await.unwrap();
    assert!(found.into_inner().tasks.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_refuses() {
    let daemon = Harness::start().await;
    let mut c = diff::diff_client::DiffClient::new(daemon.channel());
    let layer = |digest: &str| Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        digest: digest.into(),
        size: 1,
        ..Default::default()
    };
    let apply = |diff| diff::ApplyRequest { diff, ..Default::default() };
    refuse!(c.apply(apply(None)), InvalidArgument, "diff");
    refuse!(c.apply(apply(Some(layer("x")))), InvalidArgument, "x");
    refuse!(c.apply(apply(Some(layer(EMPTY_DIGEST)))), NotFound, "not found");
    let made = diff::DiffRequest { media_type: "text/plain".into(), ..Default::default() };
    refuse!(c.diff(made), Unimplemented, "text/plain");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_sandboxes_and_mounts_refuse() {
    let daemon = Harness::start().await;
    let mut c = introspection::introspection_client::IntrospectionClient::new(daemon.channel());
    let plugins = |filter: &str| introspection::PluginsRequest { filters: vec![filter.into()] };
    refused(c.plugins(plugins(BAD_FILTER)).await, InvalidArgument, "");
    let found = c.plugins(plugins("type==io.containerd.runtime.v2, id==task")).await.unwrap();
    let found = found.into_inner().plugins;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].platforms.len(), 1, "buildkit wants one");
    assert!(found[0].init_err.is_none());
    let info = |id: &str, options| introspection::PluginInfoRequest {
        r#type: "io.containerd.content.v1".into(),
        id: id.into(),
        options,
    };
    refused(c.plugin_info(info("nope", None)).await, NotFound, "nope");
    let any = Some(prost_types::Any::default());
    refused(c.plugin_info(info("content", any)).await, Unimplemented, "");

    let mut s = sandbox::store_client::StoreClient::new(daemon.channel());
    let get = sandbox::StoreGetRequest { sandbox_id: "s".into() };
    refuse!(s.get(get), NotFound, "not found");
    let create = |id: &str| sandbox::StoreCreateRequest {
        sandbox: Some(Sandbox { sandbox_id: id.into(), ..Default::default() }),
    };
    refuse!(s.create(create("a b")), InvalidArgument, "");
    refuse!(s.create(sandbox::StoreCreateRequest::default()), InvalidArgument, "sandbox");
    s.create(ns(create("s"))).await.unwrap();
    refuse!(s.create(create("s")), AlreadyExists, "already exists");
    let list = sandbox::StoreListRequest { filters: bad_filter() };
    refuse!(s.list(list), InvalidArgument, "");
    let delete = |id: &str| sandbox::StoreDeleteRequest { sandbox_id: id.into() };
    refuse!(s.delete(delete("gone")), NotFound, "not found");

    let mut k = sandbox::controller_client::ControllerClient::new(daemon.channel());
    let status = |sandboxer: &str| sandbox::ControllerStatusRequest {
        sandbox_id: "s".into(),
        sandboxer: sandboxer.into(),
        ..Default::default()
    };
    refuse!(k.status(status("")), InvalidArgument, "");
    refuse!(k.status(status("nope")), NotFound, "nope");
    refuse!(k.platform(sandbox::ControllerPlatformRequest::default()), Unimplemented, "");

    let mut m = mounts::mounts_client::MountsClient::new(daemon.channel());
    refuse!(m.activate(mounts::ActivateRequest::default()), Unimplemented, "");
    refuse!(m.info(mounts::InfoRequest { name: "m".into() }), NotFound, "not found");
    refuse!(m.deactivate(mounts::DeactivateRequest { name: "m".into() }), NotFound, "not found");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_listed_as_clients_look_for_them() {
    let daemon = Harness::start().await;
    let mut c = introspection::introspection_client::IntrospectionClient::new(daemon.channel());
    let mut list = async |filters: &[&str]| {
        let filters = filters.iter().map(|f| (*f).to_owned()).collect();
        let answer = c.plugins(introspection::PluginsRequest { filters }).await.unwrap();
        answer.into_inner().plugins
    };
    // As moby and buildkit ask.
    let snapshotters = list(&["type==\"io.containerd.snapshotter.v1\""]).await;
    let works: Vec<_> = snapshotters.iter().filter(|p| p.init_err.is_none()).collect();
    assert_eq!((works[0].id.as_str(), works[1].id.as_str()), ("overlayfs", "native"));
    for plugin in &works {
        assert!(plugin.exports["root"].ends_with(&plugin.id), "{plugin:?}");
        assert_eq!(plugin.platforms[0].os, "linux");
    }
    assert!(works[0].capabilities.contains(&"rebase".to_owned()));
    for id in ["erofs", "blockfile", "zfs", "btrfs", "devmapper"] {
        let plugin = snapshotters.iter().find(|p| p.id == id).unwrap();
        if let Some(why) = &plugin.init_err {
            assert!(why.message.contains("skip plugin"), "{why:?}");
        }
    }
    let runtimes =
        list(&["type==io.containerd.runtime.v1", "type==io.containerd.runtime.v2"]).await;
    assert!(runtimes.iter().any(|p| p.id == "task" && !p.platforms.is_empty()));
    assert_eq!(runtimes[0].exports["log-uri-schemes"], "fifo,binary,binary-v2,file");

    let all = list(&[]).await;
    let find = |kind: &str, id: &str| {
        let found = all.iter().find(|p| p.r#type == format!("io.containerd.{kind}") && p.id == id);
        found.unwrap_or_else(|| panic!("no {kind} {id}"))
    };
    assert!(find("content.v1", "content").exports.contains_key("root"));
    let bolt = find("metadata.v1", "bolt");
    assert!(bolt.exports.contains_key("path") && bolt.exports["policy"] == "shared");
    assert_eq!(find("gc.v1", "scheduler").exports["MutationThreshold"], "100");
    for id in ["containers", "content", "diff", "images", "introspection", "namespaces"] {
        find("service.v1", &format!("{id}-service"));
        find("grpc.v1", id);
    }
    for (kind, id) in [
        ("differ.v1", "walking"),
        ("event.v1", "exchange"),
        ("lease.v1", "manager"),
        ("streaming.v1", "manager"),
        ("shim.v1", "manager"),
        ("sandbox.store.v1", "local"),
        ("transfer.v1", "local"),
        ("grpc.v1", "healthcheck"),
        ("grpc.v1", "version"),
    ] {
        assert!(find(kind, id).init_err.is_none());
    }
    let skipped = introspection::PluginInfoRequest {
        r#type: "io.containerd.snapshotter.v1".into(),
        id: "zfs".into(),
        options: None,
    };
    let mut c = introspection::introspection_client::IntrospectionClient::new(daemon.channel());
    refused(c.plugin_info(skipped).await, FailedPrecondition, "zfs");
    daemon.stop().await;
}
