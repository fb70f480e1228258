//! What the manager must be told.

use std::path::PathBuf;

use crate::Deadlines;

/// How to find and start shims.
#[derive(Clone, Debug)]
pub struct Config {
    /// Kept over a reboot: `<daemon root>/io.containerd.runtime.v2.task`.
    pub root: PathBuf,
    /// Bundles: `<daemon state>/io.containerd.runtime.v2.task`.
    pub state: PathBuf,
    /// As `root`, for sandboxes: `<daemon root>/io.containerd.sandbox.controller.v1.shim`.
    pub sandbox_root: PathBuf,
    /// As `state`, for sandboxes: `<daemon state>/io.containerd.sandbox.controller.v1.shim`.
    pub sandbox_state: PathBuf,
    /// Path of the daemon's gRPC socket, which shims take as part of their identity.
    pub grpc_address: String,
    /// Path of the socket that takes the events of shims.
    pub ttrpc_address: String,
    /// A program that publishes events for shims that do it by exec: the daemon's own.
    pub publish_binary: PathBuf,
    /// Where to look for shims before PATH: the directory of the daemon's program.
    pub shim_dir: Option<PathBuf>,
    /// Where shims put their sockets.
    pub socket_dir: PathBuf,
    /// The daemon's version, told to shims.
    pub version: String,
    /// Whether shims should log in detail.
    pub debug: bool,
    /// Variables added to the environment of shims.
    pub env: Vec<(String, String)>,
    /// How long each call may take.
    pub deadlines: Deadlines,
}
