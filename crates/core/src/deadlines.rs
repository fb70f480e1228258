//! How long a foreign party may take: the one table.
//!
//! Everything the daemon waits for that is not its own code has a deadline here: shims, plugins,
//! registries, hooks. They are generous, for they only have to keep a party that never answers
//! from holding its callers for ever; whoever waits holds no lock and no transaction. ARCHITECTURE.md
//! shows the table to people, and a test keeps the two the same.
//!
//! Not here: a wait for the end of something that runs as long as its owner likes (a task, a
//! sandbox, a stream a client reads). These end with the connection.

use std::time::Duration;

macro_rules! table {
    ($($(#[doc = $doc:literal])+ $name:ident = $secs:literal;)+) => {
        $($(#[doc = $doc])+ pub const $name: Duration = Duration::from_secs($secs);)+

        /// Every deadline by name.
        pub const TABLE: &[(&str, Duration)] = &[$((stringify!($name), $name)),+];
    };
}

table! {
    /// Running `<shim> start` to its end; slow only when the disk is.
    SHIM_LAUNCH = 60;
    /// Connecting to a shim that has just started.
    SHIM_CONNECT = 5;
    /// Finding a shim of an earlier run: `io.containerd.timeout.shim.load`.
    SHIM_LOAD = 5;
    /// Running `<shim> delete` to its end: `io.containerd.timeout.shim.cleanup`.
    SHIM_CLEANUP = 5;
    /// Waiting for a shim to end when told to: `io.containerd.timeout.shim.shutdown`.
    SHIM_SHUTDOWN = 3;
    /// Asking for the state of a task: `io.containerd.timeout.task.state`.
    SHIM_STATE = 2;
    /// Asking for metrics: `io.containerd.timeout.metrics.shimstats`.
    SHIM_STATS = 2;
    /// Running `<shim> -v` or `-info` to its end.
    SHIM_INFO = 5;
    /// Creating a task; restoring a large checkpoint is part of it.
    SHIM_CREATE = 300;
    /// Starting a process; the hooks of the spec run then.
    SHIM_START = 120;
    /// Deleting a process; unmounting its root may have to write back.
    SHIM_DELETE = 60;
    /// Freezing or thawing; a process in an uninterruptible sleep holds it up.
    SHIM_FREEZE = 30;
    /// Writing a checkpoint.
    SHIM_CHECKPOINT = 600;
    /// Replacing a running shim's program; it lets its requests end first.
    SHIM_UPGRADE = 40;
    /// Everything else that runs the OCI runtime once: kill, update, pids.
    SHIM_RUNTIME = 30;
    /// Everything the shim answers from memory: exec, resize, close-io, connect.
    SHIM_MEMORY = 10;
    /// Making, starting or stopping a sandbox; its network and its virtual machine are part of it.
    SHIM_SANDBOX = 300;
    /// Connecting to a proxy plugin.
    PLUGIN_CONNECT = 5;
    /// Asking a plugin for one record: stat, mounts, info, status.
    PLUGIN_READ = 10;
    /// Asking a plugin for all its records.
    PLUGIN_LIST = 60;
    /// Making a snapshot; a remote snapshotter may ask its registry first.
    PLUGIN_PREPARE = 60;
    /// Committing a snapshot or a blob; all of it may have to reach the disk.
    PLUGIN_COMMIT = 300;
    /// Deleting in a backend, plugin or not; the collector goes on without it.
    PLUGIN_DELETE = 30;
    /// How long one collection waits for the deletions of one snapshotter.
    PLUGIN_COLLECT = 5;
    /// One piece of a blob, read from or written to a plugin.
    PLUGIN_PIECE = 60;
    /// Applying or making a layer in a plugin; the largest take minutes.
    PLUGIN_DIFF = 1800;
    /// Connecting to a registry, TLS included, unless `dial_timeout` says otherwise.
    REGISTRY_CONNECT = 30;
    /// From sending a request to a registry to the head of its answer.
    REGISTRY_RESPONSE = 60;
    /// How long a body from a registry may bring next to nothing.
    REGISTRY_STALL = 30;
    /// A client's answer to a question for credentials, asked over its stream.
    CLIENT_AUTH = 60;
    /// A client that does not take reports of progress.
    CLIENT_PROGRESS = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_people_read_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ARCHITECTURE.md");
        let text = std::fs::read_to_string(path).expect("ARCHITECTURE.md is readable");
        for (name, limit) in TABLE {
            let row = format!("| `{name}` | {} s |", limit.as_secs());
            assert!(text.contains(&row), "ARCHITECTURE.md misses {row:?}");
        }
        let rows = text.lines().filter(|l| {
            ["SHIM_", "PLUGIN_", "REGISTRY_", "CLIENT_"]
                .iter()
                .any(|p| l.starts_with(&format!("| `{p}")))
        });
        assert_eq!(rows.count(), TABLE.len(), "ARCHITECTURE.md has rows that are no deadline");
    }
}
