//! The plugin list that introspection shows: containerd's types and ids for what is built.

use gantry_services::Plugin;

use crate::config::Config;

/// Parts of the daemon under the names clients look for, in the order they start.
pub(crate) fn list(config: &Config) -> Vec<Plugin> {
    let root = |dir: &str| config.root.join(dir).to_string_lossy().into_owned();
    let content = "io.containerd.content.v1";
    let metadata = "io.containerd.metadata.v1";
    let service = "io.containerd.service.v1";
    let event = "io.containerd.event.v1";
    let mut plugins = vec![
        Plugin::new(content, "content").export("root", root("io.containerd.content.v1.content")),
        Plugin::new("io.containerd.snapshotter.v1", "native")
            .host_platform()
            .export("root", root("io.containerd.snapshotter.v1.native")),
        Plugin::new("io.containerd.snapshotter.v1", "overlayfs")
            .host_platform()
            .export("root", root("io.containerd.snapshotter.v1.overlayfs"))
            .capabilities(&["rebase"]),
        Plugin::new(event, "exchange"),
        Plugin::new(metadata, "bolt")
            .requires(&[content, "io.containerd.snapshotter.v1", event])
            .export("path", root("io.containerd.metadata.v1.bolt/meta.redb"))
            .export("policy", policy(config)),
        Plugin::new("io.containerd.gc.v1", "scheduler")
            .requires(&[metadata])
            .export("PauseThreshold", config.plugins.gc.pause_threshold.to_string())
            .export("DeletionThreshold", config.plugins.gc.deletion_threshold.to_string())
            .export("MutationThreshold", config.plugins.gc.mutation_threshold.to_string())
            .export("ScheduleDelay", config.plugins.gc.schedule_delay.to_string())
            .export("StartupDelay", config.plugins.gc.startup_delay.to_string()),
        Plugin::new("io.containerd.differ.v1", "walking").requires(&[metadata]).host_platform(),
        Plugin::new("io.containerd.lease.v1", "manager").requires(&[metadata]),
        Plugin::new("io.containerd.streaming.v1", "manager").requires(&[metadata]),
        Plugin::new("io.containerd.sandbox.store.v1", "local").requires(&[metadata]),
        Plugin::new("io.containerd.shim.v1", "manager").requires(&[event, metadata]),
        Plugin::new("io.containerd.runtime.v2", "task")
            .requires(&[event, metadata, "io.containerd.shim.v1"])
            .host_platform()
            .export("log-uri-schemes", "fifo,binary,file"),
        Plugin::new("io.containerd.transfer.v1", "local")
            .requires(&["io.containerd.lease.v1", metadata, "io.containerd.differ.v1"]),
    ];
    for id in ["containers", "content", "diff", "images", "introspection", "namespaces", "snapshots", "tasks"]
    {
        plugins.push(Plugin::new(service, format!("{id}-service")).requires(&[metadata]));
    }
    for id in [
        "containers",
        "content",
        "diff",
        "events",
        "healthcheck",
        "images",
        "introspection",
        "leases",
        "namespaces",
        "sandboxes",
        "snapshots",
        "streaming",
        "tasks",
        "transfer",
        "version",
    ] {
        plugins.push(Plugin::new("io.containerd.grpc.v1", id).requires(&[service]));
    }
    plugins.push(
        Plugin::new("io.containerd.server.v1", "grpc")
            .requires(&["io.containerd.grpc.v1"])
            .export("address", config.address()),
    );
    plugins.push(
        Plugin::new("io.containerd.server.v1", "ttrpc")
            .requires(&["io.containerd.ttrpc.v1"])
            .export("address", config.ttrpc_address()),
    );
    plugins
}

fn policy(config: &Config) -> &'static str {
    match config.plugins.metadata.content_sharing_policy {
        crate::config::ContentSharing::Shared => "shared",
        crate::config::ContentSharing::Isolated => "isolated",
    }
}
