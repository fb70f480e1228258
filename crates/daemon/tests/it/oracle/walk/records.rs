//! Containers, images, namespaces and sandboxes.

use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::images::v1 as images;
use gantry_api::containerd::services::images::v1::images_client::ImagesClient;
use gantry_api::containerd::services::namespaces::v1 as namespaces;
use gantry_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_api::containerd::services::sandbox::v1 as sandboxes;
use gantry_api::containerd::services::sandbox::v1::store_client::StoreClient;
use gantry_api::containerd::types::{Descriptor, Sandbox, sandbox};
use prost_types::Any;
use tonic::Request;

use super::{BAD_FILTERS, NAMESPACE, Walk, ask, labels, mask};
use crate::harness::{in_ns, leased};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn any(value: &str) -> Any {
    Any { type_url: "t".into(), value: value.into() }
}

fn container(id: &str) -> containers::Container {
    containers::Container {
        id: id.into(),
        runtime: Some(containers::container::Runtime { name: "r".into(), options: None }),
        spec: Some(any("{}")),
        ..Default::default()
    }
}

fn target() -> Descriptor {
    Descriptor { media_type: "m".into(), digest: DIGEST.into(), size: 1, ..Default::default() }
}

fn image(name: &str) -> images::Image {
    images::Image { name: name.into(), target: Some(target()), ..Default::default() }
}

fn pod(id: &str) -> Sandbox {
    Sandbox {
        sandbox_id: id.into(),
        runtime: Some(sandbox::Runtime { name: "r".into(), options: None }),
        ..Default::default()
    }
}

impl Walk {
    pub(super) async fn records(&mut self) {
        self.namespace_header().await;
        self.containers().await;
        self.container_updates().await;
        self.images().await;
        self.namespaces().await;
        self.sandboxes().await;
    }

    async fn namespace_header(&mut self) {
        let mut c = ContainersClient::new(self.channel.clone());
        let list = containers::ListContainersRequest::default;
        self.note("no namespace", c.list(Request::new(list())).await);
        for bad in ["a/b", "-a", "a..b", "a b"] {
            self.note(&format!("namespace {bad:?}"), c.list(in_ns(bad, list())).await);
        }
        let long = "a".repeat(77);
        self.note("long namespace", c.list(in_ns(&long, list())).await);
        let get = containers::GetContainerRequest { id: "a".into() };
        self.note("get, bad namespace", c.get(in_ns("a/b", get)).await);
        let create = containers::CreateContainerRequest { container: Some(container("x")) };
        let unknown = leased(in_ns(NAMESPACE, create), "nobody's");
        self.note("create container, unknown lease", c.create(unknown).await);
        let delete = containers::DeleteContainerRequest { id: "x".into() };
        self.note("delete it again", c.delete(ask(delete)).await);
    }

    async fn containers(&mut self) {
        let mut c = ContainersClient::new(self.channel.clone());
        let create = |c| ask(containers::CreateContainerRequest { container: Some(c) });
        let get = |id: &str| ask(containers::GetContainerRequest { id: id.into() });
        self.note("get container", c.get(get("gone")).await);
        self.note("get container, no id", c.get(get("")).await);
        self.note("get container, bad id", c.get(get("a/b")).await);
        for bad in ["", "a/b", "-a", "a..b", "a b"] {
            let made = c.create(create(container(bad))).await;
            self.note(&format!("create container {bad:?}"), made);
        }
        self.note("create container, long id", c.create(create(container(&"a".repeat(77)))).await);
        let mut bare = container("c");
        bare.runtime = None;
        self.note("create container, no runtime", c.create(create(bare)).await);
        let mut half = container("c");
        half.snapshot_key = "k".into();
        self.note("create container, no snapshotter", c.create(create(half)).await);
        let mut long = container("c");
        long.labels = labels(&[("key", &"v".repeat(4094))]);
        self.note("create container, long label", c.create(create(long)).await);
        let mut whole = container("c");
        whole.labels = labels(&[("l", "1")]);
        whole.image = "i".into();
        whole.extensions = [("e".to_owned(), any("x"))].into();
        let snapshot = containers::Container {
            snapshotter: "native".into(),
            snapshot_key: "k".into(),
            ..whole.clone()
        };
        self.note("create container", c.create(create(whole)).await);
        self.note("create container twice", c.create(create(container("c"))).await);
        let empty = containers::Container { labels: labels(&[("empty", "")]), ..container("e") };
        self.note("create container, empty label", c.create(create(empty)).await);
        let nameless = containers::Container {
            extensions: [(String::new(), any("x"))].into(),
            ..container("n")
        };
        self.note("create container, nameless extension", c.create(create(nameless)).await);
        let typeless = containers::Container {
            extensions: [("x".to_owned(), Any::default())].into(),
            ..container("t")
        };
        self.note("create container, empty extension", c.create(create(typeless)).await);
        self.note(
            "create container, all of it",
            c.create(create(containers::Container { id: "d".into(), ..snapshot })).await,
        );
        let list =
            |filter: &str| ask(containers::ListContainersRequest { filters: vec![filter.into()] });
        for bad in BAD_FILTERS {
            self.note(&format!("list containers {bad:?}"), c.list(list(bad)).await);
        }
        for good in [
            "id==c",
            "id==d,image==i",
            "labels.l==1,id!=d",
            "runtime.name==r,id~=^c",
            "x==1",
            "labels.\"l\",id==c",
            "snapshotter==native",
            "image==\"i\",id==c",
        ] {
            self.note(&format!("list containers {good}"), c.list(list(good)).await);
        }
        let stream = c.list_stream(list("name===")).await;
        let ended = match stream {
            Ok(mut stream) => stream.get_mut().message().await.map(tonic::Response::new),
            Err(status) => Err(status),
        };
        self.note("stream containers, bad filter", ended);
        let delete = |id: &str| ask(containers::DeleteContainerRequest { id: id.into() });
        self.note("delete container", c.delete(delete("gone")).await);
        self.note("delete container, no id", c.delete(delete("")).await);
    }

    async fn container_updates(&mut self) {
        let mut c = ContainersClient::new(self.channel.clone());
        let update = |change: containers::Container, paths: &[&str]| {
            let update_mask = (!paths.is_empty()).then(|| mask(paths).unwrap());
            ask(containers::UpdateContainerRequest { container: Some(change), update_mask })
        };
        let mut new = container("c");
        new.labels = labels(&[("l", "2")]);
        new.image = "j".into();
        new.extensions = [("e".to_owned(), any("y"))].into();
        for paths in [
            &["labels.l"][..],
            &["labels"],
            &["labels."],
            &["extensions.e"],
            &["extensions"],
            &["extensions."],
            &["image"],
            &["spec"],
            &["snapshotkey"],
            &["snapshot_key"],
            &["snapshotter"],
            &["runtime"],
            &["runtime.name"],
            &["id"],
            &["sandbox"],
            &["created_at"],
            &["nonsense"],
            &["labels.l", "nonsense"],
            &[""],
        ] {
            let came = c.update(update(new.clone(), paths)).await;
            self.note(&format!("update container {paths:?}"), came);
        }
        self.note("update container, none", c.update(update(container("gone"), &["image"])).await);
        self.note("update container, no id", c.update(update(container(""), &["image"])).await);
        let mut other = new.clone();
        other.runtime.as_mut().unwrap().name = "other".into();
        self.note("update container, other runtime", c.update(update(other, &[])).await);
        let mut other = new.clone();
        other.snapshotter = "other".into();
        self.note("update container, other snapshotter", c.update(update(other, &[])).await);
        let mut long = new.clone();
        long.labels = labels(&[("key", &"v".repeat(4094))]);
        self.note("update container, long label", c.update(update(long, &["labels.key"])).await);
        let mut gone = new.clone();
        gone.labels = labels(&[("l", "")]);
        self.note("update container, empty label", c.update(update(gone, &["labels.l"])).await);
        self.note("update container, all", c.update(update(new, &[])).await);
    }

    async fn images(&mut self) {
        let mut c = ImagesClient::new(self.channel.clone());
        let create =
            |image| ask(images::CreateImageRequest { image: Some(image), source_date_epoch: None });
        let get = |name: &str| ask(images::GetImageRequest { name: name.into() });
        self.note("get image", c.get(get("gone")).await);
        self.note("get image, no name", c.get(get("")).await);
        self.note("create image, no name", c.create(create(image(""))).await);
        for (what, broken) in [
            ("no digest", Descriptor { digest: String::new(), ..target() }),
            ("bad digest", Descriptor { digest: "x".into(), ..target() }),
            ("short digest", Descriptor { digest: "sha256:ab".into(), ..target() }),
            ("unknown algorithm", Descriptor { digest: "md5:ab".into(), ..target() }),
            ("no size", Descriptor { size: 0, ..target() }),
            ("negative size", Descriptor { size: -1, ..target() }),
            ("no type", Descriptor { media_type: String::new(), ..target() }),
        ] {
            let made = c.create(create(images::Image { target: Some(broken), ..image("i") })).await;
            self.note(&format!("create image, {what}"), made);
        }
        let mut long = image("i");
        long.labels = labels(&[("key", &"v".repeat(4094))]);
        self.note("create image, long label", c.create(create(long)).await);
        let mut whole = image("i");
        whole.labels = labels(&[("l", "1")]);
        self.note("create image", c.create(create(whole)).await);
        self.note("create image twice", c.create(create(image("i"))).await);
        let list = |filter: &str| ask(images::ListImagesRequest { filters: vec![filter.into()] });
        for bad in BAD_FILTERS {
            self.note(&format!("list images {bad:?}"), c.list(list(bad)).await);
        }
        for good in [
            "name==i",
            "target.digest~=^sha256:e3",
            "target.mediatype==m",
            "labels.l",
            "x!=1",
            "target.size==1",
            "annotations.a",
        ] {
            self.note(&format!("list images {good}"), c.list(list(good)).await);
        }
        let update = |change: images::Image, paths: &[&str]| {
            let update_mask = (!paths.is_empty()).then(|| mask(paths).unwrap());
            ask(images::UpdateImageRequest {
                image: Some(change),
                update_mask,
                source_date_epoch: None,
            })
        };
        let mut new = image("i");
        new.labels = labels(&[("l", "2")]);
        for paths in [
            &["labels.l"][..],
            &["labels"],
            &["target"],
            &["target.digest"],
            &["annotations"],
            &["annotations.a"],
            &["name"],
            &["created_at"],
            &["nonsense"],
            &[],
        ] {
            self.note(
                &format!("update image {paths:?}"),
                c.update(update(new.clone(), paths)).await,
            );
        }
        self.note("update image, none", c.update(update(image("gone"), &["labels"])).await);
        self.note("update image, no name", c.update(update(image(""), &["labels"])).await);
        let mut bad = image("i");
        bad.target.as_mut().unwrap().digest = "x".into();
        self.note("update image, bad digest", c.update(update(bad, &["target"])).await);
        let delete = |name: &str, target| {
            ask(images::DeleteImageRequest { name: name.into(), sync: false, target })
        };
        self.note("delete image", c.delete(delete("gone", None)).await);
        self.note("delete image, no name", c.delete(delete("", None)).await);
        let other = Descriptor { digest: format!("sha256:{}", "0".repeat(64)), ..target() };
        self.note("delete image, other target", c.delete(delete("i", Some(other))).await);
        self.note("delete image, its target", c.delete(delete("i", Some(target()))).await);
    }

    async fn namespaces(&mut self) {
        let mut c = NamespacesClient::new(self.channel.clone());
        let namespace = |name: &str, pairs: &[(&str, &str)]| {
            Some(namespaces::Namespace { name: name.into(), labels: labels(pairs) })
        };
        let get = |name: &str| namespaces::GetNamespaceRequest { name: name.into() };
        self.note("get namespace", c.get(get("nobody")).await);
        self.note("get namespace, bad name", c.get(get("a/b")).await);
        self.note("get namespace, no name", c.get(get("")).await);
        let create = |name: &str, pairs: &[(&str, &str)]| {
            in_ns(
                NAMESPACE,
                namespaces::CreateNamespaceRequest { namespace: namespace(name, pairs) },
            )
        };
        for bad in ["", "a/b", "-a", "a..b"] {
            self.note(&format!("create namespace {bad:?}"), c.create(create(bad, &[])).await);
        }
        let long = "v".repeat(4094);
        self.note("create namespace, long label", c.create(create("n", &[("key", &long)])).await);
        self.note("create namespace", c.create(create("n", &[("l", "1")])).await);
        self.note("create namespace twice", c.create(create("n", &[])).await);
        self.note("create namespace, empty label", c.create(create("m", &[("l", "")])).await);
        let update = |name: &str, paths: &[&str]| {
            let update_mask = (!paths.is_empty()).then(|| mask(paths).unwrap());
            let namespace = namespace(name, &[("l", "2")]);
            in_ns(NAMESPACE, namespaces::UpdateNamespaceRequest { namespace, update_mask })
        };
        for paths in [&["labels.l"][..], &["labels.x"], &["labels"], &["name"], &["nonsense"], &[]]
        {
            self.note(&format!("update namespace {paths:?}"), c.update(update("n", paths)).await);
        }
        self.note("update namespace, none", c.update(update("new", &["labels.l"])).await);
        self.note("update namespace, bad name", c.update(update("a/b", &["labels.l"])).await);
        let delete =
            |name: &str| in_ns(NAMESPACE, namespaces::DeleteNamespaceRequest { name: name.into() });
        self.note("delete namespace", c.delete(delete("gone")).await);
        self.note("delete namespace, bad name", c.delete(delete("a/b")).await);
        self.note("delete namespace, full", c.delete(delete(NAMESPACE)).await);
        self.note("delete namespace, empty", c.delete(delete("n")).await);
    }

    async fn sandboxes(&mut self) {
        let mut c = StoreClient::new(self.channel.clone());
        let create = |pod| ask(sandboxes::StoreCreateRequest { sandbox: Some(pod) });
        let get = |id: &str| ask(sandboxes::StoreGetRequest { sandbox_id: id.into() });
        self.note("get sandbox", c.get(get("gone")).await);
        self.note("get sandbox, no id", c.get(get("")).await);
        for bad in ["", "a/b", "a b"] {
            self.note(&format!("create sandbox {bad:?}"), c.create(create(pod(bad))).await);
        }
        let long = Sandbox { labels: labels(&[("key", &"v".repeat(4094))]), ..pod("long") };
        self.note("create sandbox, long label", c.create(create(long)).await);
        // One without a runtime ends containerd itself.
        let whole = Sandbox { labels: labels(&[("l", "1")]), sandboxer: "shim".into(), ..pod("s") };
        self.note("create sandbox", c.create(create(whole.clone())).await);
        self.note("create sandbox twice", c.create(create(whole.clone())).await);
        let list = |filter: &str| ask(sandboxes::StoreListRequest { filters: vec![filter.into()] });
        for bad in ["name===", "id==", "id!x"] {
            self.note(&format!("list sandboxes {bad:?}"), c.list(list(bad)).await);
        }
        for good in ["id==s", "labels.l==1", "labels.x", "sandboxer==shim,id==s", "runtime.name==r"]
        {
            self.note(&format!("list sandboxes {good}"), c.list(list(good)).await);
        }
        let update = |change: Sandbox, paths: &[&str]| {
            let fields = paths.iter().map(|p| (*p).to_owned()).collect();
            ask(sandboxes::StoreUpdateRequest { sandbox: Some(change), fields })
        };
        let mut new = whole;
        new.labels = labels(&[("l", "2")]);
        new.extensions = [("e".to_owned(), any("x"))].into();
        for paths in [
            &["labels.l"][..],
            &["labels"],
            &["extensions"],
            &["extensions.e"],
            &["runtime"],
            &["runtime.options"],
            &["spec"],
            &["sandboxer"],
            &["id"],
            &["nonsense"],
            &[],
        ] {
            self.note(
                &format!("update sandbox {paths:?}"),
                c.update(update(new.clone(), paths)).await,
            );
        }
        let mut other = new.clone();
        other.runtime.as_mut().unwrap().name = "other".into();
        self.note("update sandbox, other runtime", c.update(update(other, &["runtime"])).await);
        self.note("update sandbox, none", c.update(update(pod("gone"), &["labels"])).await);
        let delete = |id: &str| ask(sandboxes::StoreDeleteRequest { sandbox_id: id.into() });
        self.note("delete sandbox", c.delete(delete("s")).await);
        self.note("delete sandbox twice", c.delete(delete("s")).await);
    }
}
