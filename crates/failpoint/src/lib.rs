//! Failpoints: named places where a test makes a step fail, end the process, or wait.
//!
//! Every step that makes state durable calls [`hit`] with its name. In release builds that is
//! nothing at all; in debug builds it is one atomic load unless [`PLAN_ENV`] is set:
//!
//! ```text
//! GANTRY_FAILPOINTS = entry (";" entry)*
//! entry             = name "=" action [ "@" n [ "+" ] ]
//! action            = "error" | "abort" | "delay:" milliseconds
//! ```
//! An entry acts at the `n`th time its place is reached (the first when not given), with `+` also
//! at every later one. `error` is an I/O error of the step, which has then not been done; `abort`
//! ends the process there and then, as `kill -9` would; `delay` waits. What acted is appended to
//! the file that [`LOG_ENV`] names, a line each, so that a test knows its plan was carried out.
//!
//! The `fail` crate has no way to end the process from an environment variable (its `panic` is
//! caught by the daemon, as any panic), and does not know which names there are.
#![forbid(unsafe_code)]

use std::io;

#[cfg(debug_assertions)]
mod plan;

/// The variable with the plan.
pub const PLAN_ENV: &str = "GANTRY_FAILPOINTS";

/// The variable with the file that tells what acted.
pub const LOG_ENV: &str = "GANTRY_FAILPOINTS_LOG";

/// Every place there is, so that a sweep misses none.
pub const POINTS: &[&str] = &[
    // The installation's id, and the mark of a running daemon.
    "daemon.identity",
    "daemon.marker",
    "daemon.marker.clear",
    // The database: before a commit; after it, with nobody told; getting what the log has; its log,
    // written and synced; a checkpoint; a dump, and putting a database made anew in place of a
    // damaged one.
    "store.commit",
    "store.committed",
    "store.follow",
    "store.log",
    "store.log.sync",
    "store.checkpoint",
    "store.dump",
    "store.recover",
    "store.recovered",
    // Ingests and blobs.
    "content.ingest.create",
    "content.ingest.write",
    "content.ingest.sync",
    "content.ingest.remove",
    "content.blob.rename",
    "content.blob.sync-dir",
    "content.blob.delete",
    "content.blob.restore",
    // Snapshot directories.
    "snapshot.mkdir",
    "snapshot.fill",
    "snapshot.sync-dir",
    "snapshot.sync",
    "snapshot.trash",
    // A damaged layer: its new tree takes the place of the old one, is on record, or nothing can
    // be made of it.
    "snapshot.exchange",
    "snapshot.exchanged",
    "snapshot.give-up",
    // The doctor, about to mend a thing.
    "doctor.mend",
    // Activated mounts.
    "mounts.record",
    // Facts from before the start that no client has had yet.
    "events.recovered",
    // Bundles.
    "bundle.create",
    "bundle.spec",
    "bundle.shim-program",
    "bundle.bootstrap",
    "bundle.address",
    "bundle.told",
    "bundle.told-anew",
    "bundle.hide",
    "bundle.remove",
    // What a shim leaves in its bundle.
    "shim.record",
    "shim.options",
    "shim.spec",
    "shim.exit-record",
];

/// Reaches the place `name`: does what the plan says, which is nearly always nothing.
///
/// # Errors
/// The I/O error that the plan asks for.
#[inline]
pub fn hit(name: &'static str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    return plan::hit(name);
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        Ok(())
    }
}
