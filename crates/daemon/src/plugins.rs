//! The plugin list that introspection shows: containerd's types and ids for what is built.

use gantry_errdefs::{Error, Result};
use gantry_services::Plugin;

use crate::config::Config;
use crate::proxies::{DIFFER, Proxies, SANDBOXER};
use crate::snapshotters::{SKIP, SNAPSHOTTER, SnapshotterReport};
use crate::stores::{CONTENT_DIR, DATABASE};

/// Type and id of the programs that verify images.
pub(crate) const VERIFIER: (&str, &str) = ("io.containerd.image-verifier.v1", "bindir");

/// Type and id of the restart monitor.
pub(crate) const RESTART: (&str, &str) = ("io.containerd.monitor.container.v1", "restart");

/// Snapshotters that clients may look for.
const SNAPSHOTTERS: [&str; 7] =
    ["overlayfs", "native", "erofs", "blockfile", "zfs", "btrfs", "devmapper"];

/// The differ that is built in.
pub(crate) const WALKING: &str = "walking";

/// The differ that takes erofs images, in our process too.
pub(crate) const EROFS: &str = "erofs";

/// Parts that containerd lists and this daemon has not, but for snapshotters.
const NOT_BUILT: [(&str, &str); 11] = [
    ("io.containerd.internal.v1", "opt"),
    ("io.containerd.internal.v1", "tracing"),
    ("io.containerd.tracing.processor.v1", "otlp"),
    ("io.containerd.ttrpc.v1", "otelttrpc"),
    ("io.containerd.metrics.v1", "grpc-otel"),
    ("io.containerd.http.v1", "pprof"),
    ("io.containerd.server.v1", "grpc-tcp"),
    ("io.containerd.podsandbox.controller.v1", "podsandbox"),
    ("io.containerd.nri.v1", "nri"),
    ("io.containerd.cri.v1", "images"),
    ("io.containerd.cri.v1", "runtime"),
];

/// Parts of the daemon under the names clients look for, in the order they start.
pub(crate) fn list(
    config: &Config,
    snapshotters: &[SnapshotterReport],
    proxies: &Proxies,
) -> Vec<Plugin> {
    let root = |dir: &str| config.root.join(dir).to_string_lossy().into_owned();
    let content = "io.containerd.content.v1";
    let metadata = "io.containerd.metadata.v1";
    let service = "io.containerd.service.v1";
    let event = "io.containerd.event.v1";
    let mut plugins: Vec<Plugin> = snapshotters.iter().map(snapshotter).collect();
    let missing = SNAPSHOTTERS.iter().filter(|id| !snapshotters.iter().any(|s| s.name == **id));
    let missing = missing.filter(|id| !proxies.plugins.iter().any(|p| p.id == **id));
    plugins.extend(missing.map(|id| not_built(SNAPSHOTTER, id)));
    plugins.extend(proxies.plugins.iter().cloned());
    if proxies.content.is_none() {
        plugins.push(Plugin::new(content, "content").export("root", root(CONTENT_DIR)));
    }
    plugins.extend([
        Plugin::new(event, "exchange"),
        Plugin::new(metadata, "bolt")
            .requires(&[content, SNAPSHOTTER, event])
            .export("path", root(DATABASE))
            .export("policy", policy(config)),
        Plugin::new("io.containerd.gc.v1", "scheduler")
            .requires(&[metadata])
            .export("PauseThreshold", config.plugins.gc.pause_threshold.to_string())
            .export("DeletionThreshold", config.plugins.gc.deletion_threshold.to_string())
            .export("MutationThreshold", config.plugins.gc.mutation_threshold.to_string())
            .export("ScheduleDelay", config.plugins.gc.schedule_delay.to_string())
            .export("StartupDelay", config.plugins.gc.startup_delay.to_string()),
        Plugin::new(DIFFER, WALKING).requires(&[metadata]).host_platform(),
        Plugin::new("io.containerd.mount-handler.v1", "erofs"),
        Plugin::new("io.containerd.mount-manager.v1", "bolt")
            .requires(&["io.containerd.mount-handler.v1", metadata]),
        Plugin::new("io.containerd.lease.v1", "manager").requires(&[metadata]),
        Plugin::new("io.containerd.streaming.v1", "manager").requires(&[metadata]),
        Plugin::new("io.containerd.sandbox.store.v1", "local").requires(&[metadata]),
        Plugin::new(SANDBOXER, "shim").requires(&["io.containerd.shim.v1", event]),
        Plugin::new("io.containerd.shim.v1", "manager").requires(&[event, metadata]),
        Plugin::new("io.containerd.runtime.v2", "task")
            .requires(&[event, metadata, "io.containerd.shim.v1"])
            .host_platform()
            .export("log-uri-schemes", "fifo,binary,binary-v2,file"),
        Plugin::new("io.containerd.monitor.task.v1", "cgroups").requires(&[event]),
        Plugin::new("io.containerd.warning.v1", "deprecations").requires(&[event]),
        Plugin::new(RESTART.0, RESTART.1)
            .requires(&[metadata, "io.containerd.runtime.v2"])
            .capabilities(&["no", "always", "on-failure", "unless-stopped"]),
        Plugin::new(VERIFIER.0, VERIFIER.1),
        Plugin::new("io.containerd.transfer.v1", "local")
            .export("config_path", &config.plugins.transfer.config_path)
            .requires(&["io.containerd.lease.v1", metadata, DIFFER]),
    ]);
    for id in [
        "containers",
        "content",
        "diff",
        "images",
        "introspection",
        "namespaces",
        "snapshots",
        "tasks",
    ] {
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
        "mounts",
        "namespaces",
        "sandbox-controllers",
        "sandboxes",
        "snapshots",
        "streaming",
        "tasks",
        "transfer",
        "version",
    ] {
        plugins.push(Plugin::new("io.containerd.grpc.v1", id).requires(&[service]));
    }
    plugins.extend(listeners(config));
    // Another process may serve one of that name.
    if !proxies.differs.contains_key(EROFS) {
        plugins.push(Plugin::new(DIFFER, EROFS).requires(&[metadata]).host_platform());
    }
    plugins.extend(NOT_BUILT.iter().map(|(kind, id)| not_built(kind, id)));
    plugins
}

/// Who listens where; one that is not asked to is skipped.
fn listeners(config: &Config) -> Vec<Plugin> {
    const SERVER: &str = "io.containerd.server.v1";
    let own = &config.plugins;
    let mut plugins = vec![
        Plugin::new("io.containerd.metrics.v1", "grpc-prometheus"),
        Plugin::new(SERVER, "grpc")
            .requires(&["io.containerd.grpc.v1"])
            .export("address", config.address()),
        Plugin::new(SERVER, "ttrpc")
            .requires(&["io.containerd.ttrpc.v1"])
            .export("address", config.ttrpc_address()),
    ];
    for (id, address) in [("metrics", &own.metrics.address), ("debug", &own.debug.address)] {
        let plugin = Plugin::new(SERVER, id);
        plugins.push(if address.is_empty() {
            plugin.failed(&Error::unknown("no address is configured: skip plugin"))
        } else {
            plugin.export("address", address)
        });
    }
    plugins
}

/// A part that containerd has and this daemon has not, shown as containerd shows one that cannot
/// work on its host.
fn not_built(kind: &str, id: &str) -> Plugin {
    Plugin::new(kind, id).failed(&Error::unknown(format!("{id} is not built: {SKIP}")))
}

fn policy(config: &Config) -> &'static str {
    match config.plugins.metadata.content_sharing_policy {
        crate::config::ContentSharing::Shared => "shared",
        crate::config::ContentSharing::Isolated => "isolated",
    }
}

fn snapshotter(report: &SnapshotterReport) -> Plugin {
    let capabilities: Vec<&str> = report.capabilities.iter().map(String::as_str).collect();
    let plugin = Plugin::new(SNAPSHOTTER, report.name)
        .host_platform()
        .export("root", report.root.to_string_lossy())
        .capabilities(&capabilities);
    match &report.error {
        Some(text) => plugin.failed(&Error::unknown(text)),
        None => plugin,
    }
}

/// Checks that what the configuration requires is there and works.
///
/// # Errors
/// FailedPrecondition naming the plugin.
pub(crate) fn check_required(config: &Config, plugins: &[Plugin]) -> Result<()> {
    for uri in &config.required_plugins {
        let plugin = plugins.iter().find(|p| format!("{}.{}", p.kind, p.id) == *uri);
        let why = match plugin {
            Some(Plugin { init_error: None, .. }) => continue,
            Some(Plugin { init_error: Some((_, why)), .. }) => why,
            None => "not built",
        };
        return Err(Error::failed_precondition(format!("required plugin {uri}: {why}")));
    }
    Ok(())
}
