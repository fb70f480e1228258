//! The configuration file: containerd's schema, versions 1 to 4.
//!
//! A file of any version is first brought to the newest one as a plain TOML tree ([`migrate`]),
//! drop-ins are merged in ([`load`]), and only then is it read into [`Config`]. So there is one
//! typed form, and `config migrate` is the same code that start-up runs.
//!
//! Keys we do not know are never fatal: each is reported once with its path ([`Loaded::warnings`]).
//!
//! A crate of its own, so that what reads files and nothing else builds without the daemon.
#![forbid(unsafe_code)]

mod duration;
mod glob;
pub mod load;
mod logging;
pub mod migrate;
mod plugins;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result};
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;

pub use duration::GoDuration;
pub use load::Loaded;
pub use logging::LogFormat;
pub use plugins::{
    Blockfile, ContentSharing, Diff, Erofs, Gc, Listen, Metadata, MetricsListen, Overlayfs,
    Plugins, Restart, RootPath, RuntimeTask, ShimManager, Transfer, TransferUnpack,
};

/// The newest schema version this daemon reads.
pub const VERSION_MAX: i64 = 4;

/// Largest gRPC message in bytes either way, containerd's own bound: clients send whole specs.
pub const MESSAGE_LEN_MAX: usize = 16 << 20;

/// Whose default paths to take: the same binary serves both names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `/var/lib/gantry`, `/run/gantry`, `/etc/gantry/config.toml`.
    Gantry,
    /// `/var/lib/containerd`, `/run/containerd`, `/etc/containerd/config.toml`.
    Containerd,
}

impl Flavour {
    /// The flavour by the name the program was started under.
    pub fn of_program(argv0: &OsStr) -> Self {
        match Path::new(argv0).file_name().and_then(OsStr::to_str) {
            Some("containerd") => Self::Containerd,
            _ => Self::Gantry,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Gantry => "gantry",
            Self::Containerd => "containerd",
        }
    }

    /// The configuration file that is read when none is named; it need not exist.
    pub fn config_path(self) -> PathBuf {
        PathBuf::from(format!("/etc/{}/config.toml", self.name()))
    }
}

/// Everything the daemon can be told, in the newest schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Schema version; always [`VERSION_MAX`] once loaded.
    pub version: i64,
    /// Persistent state: content, metadata, snapshots.
    pub root: PathBuf,
    /// State that a reboot clears: bundles, sockets.
    pub state: PathBuf,
    /// Directory for temporary files; empty means the system's.
    pub temp: String,
    /// What to write to our `oom_score_adj`; 0 leaves it alone.
    pub oom_score: i32,
    /// Plugin URIs that are not to be started.
    pub disabled_plugins: Vec<String>,
    /// Plugin URIs without which the daemon must not start.
    pub required_plugins: Vec<String>,
    /// Globs of drop-in files that were merged.
    pub imports: Vec<String>,
    /// Logging.
    pub debug: Debug,
    /// Resource control of the daemon itself.
    pub cgroup: Cgroup,
    /// Named deadlines, `io.containerd.timeout.*`.
    pub timeouts: BTreeMap<String, GoDuration>,
    /// Programs that turn one media type into another before a layer is applied.
    pub stream_processors: BTreeMap<String, StreamProcessor>,
    /// Plugins served by other processes over gRPC.
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// One section per plugin.
    pub plugins: Plugins,
}

/// Logging options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Debug {
    /// trace, debug, info, warn, error, fatal or panic; empty means info.
    pub level: String,
    /// text or json; empty means text.
    pub format: String,
}

impl Debug {
    /// The level as configured; info when nothing is.
    ///
    /// # Errors
    /// InvalidArgument for any other word.
    pub fn log_level(&self) -> Result<LevelFilter> {
        logging::level(&self.level)
    }

    /// The format as configured; text when nothing is.
    ///
    /// # Errors
    /// InvalidArgument for any other word.
    pub fn log_format(&self) -> Result<LogFormat> {
        logging::format(&self.format)
    }
}

/// Which cgroup the daemon puts itself into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroup {
    /// Path below the cgroup root; empty means stay.
    pub path: String,
}

/// One stream processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamProcessor {
    /// Media types it takes.
    pub accepts: Vec<String>,
    /// Media type it returns.
    pub returns: String,
    /// Program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
}

/// One proxy plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyPlugin {
    /// snapshot, content, diff or sandbox.
    #[serde(rename = "type")]
    pub kind: String,
    /// Unix socket it serves on.
    pub address: String,
    /// Platform it works for, such as `linux/amd64`.
    pub platform: String,
    /// Exports shown by introspection.
    pub exports: BTreeMap<String, String>,
    /// Capabilities shown by introspection.
    pub capabilities: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self::defaults(Flavour::Gantry)
    }
}

impl Config {
    /// The configuration without any file.
    pub fn defaults(flavour: Flavour) -> Self {
        let name = flavour.name();
        let state = PathBuf::from(format!("/run/{name}"));
        let mut plugins = Plugins::default();
        plugins.grpc.address = format!("/run/{name}/{name}.sock");
        Self {
            version: VERSION_MAX,
            root: PathBuf::from(format!("/var/lib/{name}")),
            state,
            temp: String::new(),
            oom_score: 0,
            disabled_plugins: Vec::new(),
            required_plugins: Vec::new(),
            imports: Vec::new(),
            debug: Debug::default(),
            cgroup: Cgroup::default(),
            timeouts: default_timeouts(),
            stream_processors: BTreeMap::new(),
            proxy_plugins: BTreeMap::new(),
            plugins,
        }
    }

    /// A configuration that lives wholly below two directories, as tests and embedded use need.
    pub fn private(root: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        let mut config = Self::defaults(Flavour::Gantry);
        config.root = root.into();
        config.state = state.into();
        config.plugins.grpc.address =
            config.state.join("gantry.sock").to_string_lossy().into_owned();
        config
    }

    /// The gRPC socket.
    pub fn address(&self) -> &str {
        &self.plugins.grpc.address
    }

    /// The ttrpc socket for shims: as configured, or `<grpc address>.ttrpc`.
    pub fn ttrpc_address(&self) -> String {
        match self.plugins.ttrpc.address.as_str() {
            "" => format!("{}.ttrpc", self.address()),
            set => set.to_owned(),
        }
    }

    /// Sets the gRPC address, and with it the ttrpc one (what the flag `--address` does).
    pub fn set_address(&mut self, address: &str) {
        self.plugins.grpc.address = address.to_owned();
        self.plugins.ttrpc.address = format!("{address}.ttrpc");
    }

    /// The named deadline, or `default` when the file has none.
    pub fn timeout(&self, name: &str, default: std::time::Duration) -> std::time::Duration {
        self.timeouts
            .get(&format!("io.containerd.timeout.{name}"))
            .map_or(default, |d| d.duration())
    }

    /// Whether the plugin `type.id` is switched off.
    pub fn is_disabled(&self, kind: &str, id: &str) -> bool {
        self.disabled_plugins
            .iter()
            .any(|uri| uri.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.')) == Some(id))
    }

    /// Checks what can be checked without touching the system.
    ///
    /// # Errors
    /// InvalidArgument naming the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |why: String| Err(Error::invalid_argument(why));
        if self.root.as_os_str().is_empty() || self.state.as_os_str().is_empty() {
            return bad("config: root and state must be set".to_owned());
        }
        if !self.root.is_absolute() || !self.state.is_absolute() {
            return bad("config: root and state must be absolute paths".to_owned());
        }
        if self.root == self.state {
            return bad("config: root and state must be different paths".to_owned());
        }
        if self.address().is_empty() {
            return bad("config: the grpc address must be set".to_owned());
        }
        for uri in self.disabled_plugins.iter().chain(&self.required_plugins) {
            if !uri.contains('.') {
                return bad(format!(
                    "config: plugin {uri:?}: expect a plugin URI such as \"io.containerd.x.v1.id\""
                ));
            }
        }
        self.debug.log_level()?;
        self.debug.log_format()?;
        Ok(())
    }

    /// The configuration as TOML.
    ///
    /// # Errors
    /// Internal when a value has no TOML form, which no loaded configuration has.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|e| Error::internal(format!("config: cannot be written: {e}")))
    }
}

fn default_timeouts() -> BTreeMap<String, GoDuration> {
    [
        ("bolt.open", "0s"),
        ("metrics.shimstats", "2s"),
        ("shim.cleanup", "5s"),
        ("shim.load", "5s"),
        ("shim.shutdown", "3s"),
        ("task.state", "2s"),
    ]
    .into_iter()
    .map(|(name, text)| {
        let value = text.parse().expect("the default durations are well formed");
        (format!("io.containerd.timeout.{name}"), value)
    })
    .collect()
}
