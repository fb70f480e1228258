//! Leases, events, introspection and health.

use gantry_api::containerd::services::events::v1 as events;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::introspection::v1 as introspection;
use gantry_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::types::Envelope;
use prost_types::Any;
use tonic::{Request, Response};

use super::{BAD_FILTERS, LEASE, NAMESPACE, Walk, labels};
use crate::harness::in_ns;

/// Plugins that clients may look at, without what depends on the host.
const PLUGINS: [(&str, &str); 38] = [
    ("content.v1", "content"),
    ("snapshotter.v1", "overlayfs"),
    ("snapshotter.v1", "native"),
    ("snapshotter.v1", "blockfile"),
    ("snapshotter.v1", "btrfs"),
    ("differ.v1", "walking"),
    ("metadata.v1", "bolt"),
    ("gc.v1", "scheduler"),
    ("event.v1", "exchange"),
    ("lease.v1", "manager"),
    ("streaming.v1", "manager"),
    ("warning.v1", "deprecations"),
    ("runtime.v2", "task"),
    ("shim.v1", "manager"),
    ("service.v1", "containers-service"),
    ("service.v1", "content-service"),
    ("service.v1", "diff-service"),
    ("service.v1", "images-service"),
    ("service.v1", "introspection-service"),
    ("service.v1", "namespaces-service"),
    ("service.v1", "snapshots-service"),
    ("service.v1", "tasks-service"),
    ("grpc.v1", "containers"),
    ("grpc.v1", "content"),
    ("grpc.v1", "events"),
    ("grpc.v1", "healthcheck"),
    ("grpc.v1", "leases"),
    ("grpc.v1", "sandbox-controllers"),
    ("grpc.v1", "sandboxes"),
    ("grpc.v1", "streaming"),
    ("grpc.v1", "tasks"),
    ("grpc.v1", "transfer"),
    ("grpc.v1", "version"),
    ("sandbox.controller.v1", "shim"),
    ("sandbox.store.v1", "local"),
    ("transfer.v1", "local"),
    ("image-verifier.v1", "bindir"),
    ("monitor.container.v1", "restart"),
];

fn plain<T>(message: T) -> Request<T> {
    in_ns(NAMESPACE, message)
}

impl Walk {
    pub(super) async fn holders(&mut self) {
        self.leases().await;
        self.members().await;
        self.events().await;
        self.plugins().await;
    }

    async fn leases(&mut self) {
        let mut c = LeasesClient::new(self.channel.clone());
        let create = |id: &str, pairs: &[(&str, &str)]| {
            plain(leases::CreateRequest { id: id.into(), labels: labels(pairs) })
        };
        self.note("create lease", c.create(create("l", &[("a", "1")])).await);
        self.note("create lease twice", c.create(create("l", &[])).await);
        self.note("create lease, free text", c.create(create("a/b c", &[])).await);
        self.note("create lease, empty label", c.create(create("e", &[("a", "")])).await);
        let long = "v".repeat(4094);
        self.note("create lease, long label", c.create(create("m", &[("key", &long)])).await);
        let list = |filter: &str| plain(leases::ListRequest { filters: vec![filter.into()] });
        for good in ["id==l", "labels.a==1", "labels.x", "x!=1,id==l"] {
            self.note(&format!("list leases {good}"), c.list(list(good)).await);
        }
        for bad in BAD_FILTERS {
            self.note(&format!("list leases {bad:?}"), c.list(list(bad)).await);
        }
        let delete = |id: &str| plain(leases::DeleteRequest { id: id.into(), sync: false });
        self.note("delete lease, none", c.delete(delete("gone")).await);
        self.note("delete lease, no id", c.delete(delete("")).await);
        self.note("delete lease", c.delete(delete("a/b c")).await);
    }

    async fn members(&mut self) {
        let mut c = LeasesClient::new(self.channel.clone());
        let resource =
            |kind: &str, id: &str| Some(leases::Resource { id: id.into(), r#type: kind.into() });
        let digest = gantry_core::Digest::of(b"x").to_string();
        for (kind, id) in [
            ("content", digest.as_str()),
            ("content", "nonsense"),
            ("content", ""),
            ("ingests", "r"),
            ("images", "i"),
            ("snapshots/native", "k"),
            ("snapshots/nope", "k"),
            ("snapshots", "k"),
            ("snapshots/", "k"),
            ("snapshots/a/b", "k"),
            ("content/x", &digest),
            ("colours", "red"),
            ("", "x"),
        ] {
            let add = leases::AddResourceRequest { id: "l".into(), resource: resource(kind, id) };
            self.note(&format!("add {kind:?} {id:?}"), c.add_resource(plain(add)).await);
        }
        let add =
            leases::AddResourceRequest { id: "gone".into(), resource: resource("images", "i") };
        self.note("add to none", c.add_resource(plain(add)).await);
        let members = |id: &str| plain(leases::ListResourcesRequest { id: id.into() });
        self.note("members", c.list_resources(members("l")).await);
        self.note("members of none", c.list_resources(members("gone")).await);
        for (kind, id) in [
            ("images", "absent"),
            ("images", "i"),
            ("colours", "red"),
            ("snapshots", "k"),
            ("snapshots/nope", "k"),
        ] {
            let drop =
                leases::DeleteResourceRequest { id: "l".into(), resource: resource(kind, id) };
            self.note(&format!("drop {kind:?} {id:?}"), c.delete_resource(plain(drop)).await);
        }
        let drop =
            leases::DeleteResourceRequest { id: "gone".into(), resource: resource("images", "i") };
        self.note("drop from none", c.delete_resource(plain(drop)).await);
        // What the walk itself made under its lease.
        let held = c.list_resources(members(LEASE)).await.unwrap().into_inner();
        let mut held: Vec<_> =
            held.resources.into_iter().map(|r| format!("{} {}", r.r#type, r.id)).collect();
        held.sort();
        self.put("held by the walk", format!("{held:#?}"));
    }

    async fn events(&mut self) {
        let mut c = EventsClient::new(self.channel.clone());
        let event = Any { type_url: "t".into(), value: vec![1] };
        let publish = |topic: &str| events::PublishRequest {
            topic: topic.into(),
            event: Some(event.clone()),
        };
        self.note("publish, no namespace", c.publish(Request::new(publish("/a/b"))).await);
        for topic in ["/a/b", "/a", "/a/b/c", "/a/b.c", "", "a/b", "/", "/a//b", "/a/b!", "/a/"] {
            self.note(&format!("publish {topic:?}"), c.publish(plain(publish(topic))).await);
        }
        let forward = |namespace: &str, topic: &str| {
            let (namespace, topic) = (namespace.into(), topic.into());
            let event = Some(event.clone());
            let timestamp = Some(std::time::SystemTime::UNIX_EPOCH.into());
            let envelope = Envelope { timestamp, namespace, topic, event };
            Request::new(events::ForwardRequest { envelope: Some(envelope) })
        };
        for (namespace, topic) in
            [("a", "/a/b"), ("", "/a/b"), ("a b", "/a/b"), ("a", "b"), ("a", "")]
        {
            let came = c.forward(forward(namespace, topic)).await;
            self.note(&format!("forward {namespace:?} {topic:?}"), came);
        }
        for bad in BAD_FILTERS {
            let subscribe = events::SubscribeRequest { filters: vec![bad.into()] };
            let came = match c.subscribe(Request::new(subscribe)).await {
                Ok(mut seen) => seen.get_mut().message().await.map(Response::new),
                Err(status) => Err(status),
            };
            self.note(&format!("subscribe {bad:?}"), came);
        }
    }

    async fn plugins(&mut self) {
        let mut c = IntrospectionClient::new(self.channel.clone());
        for bad in BAD_FILTERS {
            let plugins = introspection::PluginsRequest { filters: vec![bad.into()] };
            self.note(&format!("plugins {bad:?}"), c.plugins(Request::new(plugins)).await);
        }
        let all = introspection::PluginsRequest { filters: vec![] };
        let all = c.plugins(Request::new(all)).await.unwrap().into_inner().plugins;
        for (kind, id) in PLUGINS {
            let found =
                all.iter().find(|p| p.r#type == format!("io.containerd.{kind}") && p.id == id);
            let shown = found.map(|plugin| {
                let mut exports: Vec<_> = plugin.exports.keys().collect();
                exports.sort();
                let (platforms, capabilities) = (&plugin.platforms, &plugin.capabilities);
                let why = plugin.init_err.as_ref().map(|why| why.code);
                format!("{exports:?} {capabilities:?} {platforms:?} {why:?}")
            });
            self.put(&format!("plugin {kind} {id}"), format!("{shown:?}"));
        }
    }
}
