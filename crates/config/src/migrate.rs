//! Bringing a configuration of any version to the newest schema.
//!
//! Each step turns version N into N+1 on the plain TOML tree, so that keys we do not know travel
//! along. A file without a version is version 1.

use gantry_errdefs::{Error, Result};
use toml::{Table, Value};

use super::VERSION_MAX;

/// Plugin URIs behind the short names of version 1.
const SHORT_NAMES: [(&str, &str); 30] = [
    ("aufs", "io.containerd.snapshotter.v1.aufs"),
    ("bolt", "io.containerd.metadata.v1.bolt"),
    ("btrfs", "io.containerd.snapshotter.v1.btrfs"),
    ("cgroups", "io.containerd.monitor.v1.cgroups"),
    ("containers", "io.containerd.grpc.v1.containers"),
    ("content", "io.containerd.content.v1.content"),
    ("cri", "io.containerd.grpc.v1.cri"),
    ("devmapper", "io.containerd.snapshotter.v1.devmapper"),
    ("diff", "io.containerd.grpc.v1.diff"),
    ("diff-service", "io.containerd.service.v1.diff-service"),
    ("events", "io.containerd.grpc.v1.events"),
    ("healthcheck", "io.containerd.grpc.v1.healthcheck"),
    ("images", "io.containerd.grpc.v1.images"),
    ("introspection", "io.containerd.grpc.v1.introspection"),
    ("leases", "io.containerd.grpc.v1.leases"),
    ("linux", "io.containerd.runtime.v1.linux"),
    ("namespaces", "io.containerd.grpc.v1.namespaces"),
    ("native", "io.containerd.snapshotter.v1.native"),
    ("opt", "io.containerd.internal.v1.opt"),
    ("overlayfs", "io.containerd.snapshotter.v1.overlayfs"),
    ("restart", "io.containerd.internal.v1.restart"),
    ("scheduler", "io.containerd.gc.v1.scheduler"),
    ("snapshots", "io.containerd.grpc.v1.snapshots"),
    ("task", "io.containerd.runtime.v2.task"),
    ("tasks", "io.containerd.grpc.v1.tasks"),
    ("tasks-service", "io.containerd.service.v1.tasks-service"),
    ("version", "io.containerd.grpc.v1.version"),
    ("walking", "io.containerd.differ.v1.walking"),
    ("windows", "io.containerd.snapshotter.v1.windows"),
    ("zfs", "io.containerd.snapshotter.v1.zfs"),
];

/// Plugins renamed by version 3, old and new URI.
const RENAMED: [(&str, &str); 2] = [
    ("io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart"),
    ("io.containerd.monitor.v1.cgroups", "io.containerd.monitor.task.v1.cgroups"),
];

/// The version a file declares.
///
/// # Errors
/// InvalidArgument when it is not a number or newer than [`VERSION_MAX`].
pub fn version_of(table: &Table) -> Result<i64> {
    match table.get("version") {
        None => Ok(1),
        Some(Value::Integer(0)) => Ok(1),
        Some(Value::Integer(v)) if (1..=VERSION_MAX).contains(v) => Ok(*v),
        Some(other) => Err(Error::invalid_argument(format!(
            "config version {other}: expect 1 to {VERSION_MAX}"
        ))),
    }
}

/// Brings `table` to the newest version; what loses its meaning on the way is warned of.
///
/// # Errors
/// InvalidArgument for an unknown version.
pub fn migrate(table: &mut Table, warnings: &mut Vec<String>) -> Result<()> {
    let version = version_of(table)?;
    if version < 2 {
        to_v2(table, warnings);
    }
    if version < 3 {
        to_v3(table);
    }
    to_v4(table);
    table.insert("version".to_owned(), Value::Integer(VERSION_MAX));
    Ok(())
}

fn to_v2(table: &mut Table, warnings: &mut Vec<String>) {
    if table.remove("plugin_dir").is_some_and(|dir| dir.as_str() != Some("")) {
        warnings.push("plugin_dir: external plugin files are not supported, ignored".to_owned());
    }
    for list in ["disabled_plugins", "required_plugins"] {
        for item in table.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::String(name) = item {
                *name = long_name(name);
            }
        }
    }
    if let Some(Value::Table(plugins)) = table.get_mut("plugins") {
        let old = std::mem::take(plugins);
        plugins.extend(old.into_iter().map(|(name, section)| (long_name(&name), section)));
    }
}

fn long_name(name: &str) -> String {
    SHORT_NAMES
        .iter()
        .find(|(short, _)| *short == name)
        .map_or_else(|| name.to_owned(), |(_, uri)| (*uri).to_owned())
}

fn to_v3(table: &mut Table) {
    for list in ["disabled_plugins", "required_plugins"] {
        for item in table.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::String(name) = item
                && let Some((_, new)) = RENAMED.iter().find(|(old, _)| old == name)
            {
                *name = (*new).to_owned();
            }
        }
    }
    let Some(Value::Table(plugins)) = table.get_mut("plugins") else { return };
    for (old, new) in RENAMED {
        if let Some(section) = plugins.remove(old) {
            plugins.entry(new).or_insert(section);
        }
    }
    let sched_core = plugins
        .get_mut("io.containerd.runtime.v2.task")
        .and_then(Value::as_table_mut)
        .and_then(|task| task.remove("sched_core"));
    if sched_core == Some(Value::Boolean(true)) {
        let shim = section(plugins, "io.containerd.shim.v1.manager");
        let env = shim.entry("env").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(env) = env {
            env.push(Value::String("SCHED_CORE=1".to_owned()));
        }
    }
}

/// Version 4 moves the listeners below `[plugins]`. Sections left in a version 4 file are taken
/// as well: the meaning is clear, so there is nothing to refuse.
fn to_v4(table: &mut Table) {
    let grpc_tcp = [
        ("tcp_address", "address"),
        ("tcp_tls_ca", "tls_ca"),
        ("tcp_tls_cert", "tls_cert"),
        ("tcp_tls_key", "tls_key"),
        ("tcp_tls_common_name", "tls_common_name"),
    ];
    if let Some(Value::Table(mut grpc)) = table.remove("grpc") {
        let mut tcp = Table::new();
        for (old, new) in grpc_tcp {
            if let Some(value) = grpc.remove(old)
                && value.as_str() != Some("")
            {
                tcp.insert(new.to_owned(), value);
            }
        }
        // Zero means "the default" in the old sections.
        for limit in ["max_recv_message_size", "max_send_message_size"] {
            if grpc.get(limit) == Some(&Value::Integer(0)) {
                grpc.remove(limit);
            }
        }
        move_into(table, "io.containerd.server.v1.grpc", grpc);
        move_into(table, "io.containerd.server.v1.grpc-tcp", tcp);
    }
    for (old, uri) in
        [("ttrpc", "io.containerd.server.v1.ttrpc"), ("metrics", "io.containerd.server.v1.metrics")]
    {
        if let Some(Value::Table(keys)) = table.remove(old) {
            move_into(table, uri, keys);
        }
    }
    let mut listen = Table::new();
    if let Some(Value::Table(debug)) = table.get_mut("debug") {
        for key in ["address", "uid", "gid"] {
            if let Some(value) = debug.remove(key) {
                listen.insert(key.to_owned(), value);
            }
        }
    }
    move_into(table, "io.containerd.server.v1.debug", listen);
}

fn move_into(table: &mut Table, uri: &str, keys: Table) {
    if keys.is_empty() {
        return;
    }
    let into = section(section(table, "plugins"), uri);
    for (key, value) in keys {
        into.entry(key).or_insert(value);
    }
}

/// The table under `key`, made when it is missing (or was no table, which reading it refuses).
fn section<'a>(table: &'a mut Table, key: &str) -> &'a mut Table {
    let slot = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
    if !slot.is_table() {
        *slot = Value::Table(Table::new());
    }
    match slot {
        Value::Table(t) => t,
        _ => unreachable!("made a table just above"),
    }
}
