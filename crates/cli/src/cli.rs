//! The command line's top: global flags and the list of commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use gantry_errdefs::{Error, Result};
use tracing_subscriber::EnvFilter;

use crate::cmd;
use crate::output::Format;
use crate::session::Session;

/// Socket of gantryd.
const GANTRY_ADDRESS: &str = "/run/gantry/gantry.sock";

/// Socket of containerd, the default when started as `ctr`.
const CONTAINERD_ADDRESS: &str = "/run/containerd/containerd.sock";

/// Where `--embedded` keeps everything unless told otherwise.
const EMBEDDED_ROOT: &str = "/var/lib/gantry-embedded";

/// Run containers and manage images through a containerd daemon.
#[derive(Debug, Parser)]
#[command(name = "gantry", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command, given before it.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Socket of the daemon
    #[arg(long, short = 'a', value_name = "SOCKET", env = "CONTAINERD_ADDRESS")]
    pub(crate) address: Option<PathBuf>,
    /// Namespace of containers, images and everything else
    #[arg(
        long,
        short = 'n',
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    pub(crate) namespace: String,
    /// Longest time a call may take, such as 30s; 0 for no limit
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Longest time connecting may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) connect_timeout: Duration,
    /// Log what happens to standard error
    #[arg(long)]
    pub(crate) debug: bool,
    /// Run the daemon inside this program, on a root of its own
    #[arg(long)]
    pub(crate) embedded: bool,
    /// Directory of the embedded daemon
    #[arg(long, value_name = "DIR", env = "GANTRY_EMBEDDED_ROOT", default_value = EMBEDDED_ROOT)]
    pub(crate) embedded_root: PathBuf,
    /// How lists are shown
    #[arg(long, value_enum, default_value_t, global = true, value_name = "FORMAT")]
    pub(crate) format: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the versions of client and daemon
    Version,
    /// Show facts about the daemon
    Info,
    /// Show the daemon's parts
    #[command(visible_alias = "plugin", subcommand)]
    Plugins(cmd::plugins::Command),
    /// Manage containers
    #[command(visible_aliases = ["c", "container"], subcommand)]
    Containers(cmd::containers::Command),
    /// Manage content
    #[command(subcommand)]
    Content(cmd::content::Command),
    /// Show what is used that is going away
    #[command(visible_alias = "deprecation", subcommand)]
    Deprecations(cmd::version::Deprecations),
    /// Show, and fix, what is orphaned or damaged
    Doctor(cmd::doctor::Flags),
    /// Show events as they happen
    #[command(visible_alias = "event")]
    Events(cmd::events::Flags),
    /// Manage images
    #[command(visible_aliases = ["i", "image"], subcommand)]
    Images(cmd::images::Command),
    /// Manage leases
    #[command(visible_alias = "lease", subcommand)]
    Leases(cmd::leases::Command),
    /// Manage namespaces
    #[command(visible_aliases = ["ns", "namespace"], subcommand)]
    Namespaces(cmd::namespaces::Command),
    /// Print what OCI documents begin as
    #[command(subcommand)]
    Oci(cmd::oci::Command),
    /// Run a container
    Run(Box<cmd::run::Flags>),
    /// Manage shims, the processes behind tasks
    #[command(visible_alias = "shim", subcommand)]
    Shims(cmd::shims::Command),
    /// Manage snapshots
    #[command(visible_alias = "snapshot")]
    Snapshots(cmd::snapshots::Group),
    /// Manage tasks, the running side of containers
    #[command(visible_aliases = ["t", "task"], subcommand)]
    Tasks(cmd::tasks::Command),
}

impl Cli {
    /// Runs the command; returns the exit code.
    pub(crate) fn execute(self, program: &str) -> Result<u8> {
        if self.global.debug {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "debug".into());
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting the runtime", e))?;
        let done = runtime.block_on(async {
            let session = Session::open(&self.global, program).await?;
            let done = self.command.execute(&session).await;
            session.close().await;
            done
        });
        // A thread may be blocked in a read of standard input that never ends.
        runtime.shutdown_background();
        done
    }
}

impl Command {
    async fn execute(self, session: &Session) -> Result<u8> {
        match self {
            Self::Version => cmd::version::version(session).await,
            Self::Info => cmd::version::info(session).await,
            Self::Plugins(c) => c.execute(session).await,
            Self::Containers(c) => c.execute(session).await,
            Self::Content(c) => c.execute(session).await,
            Self::Deprecations(c) => c.execute(session).await,
            Self::Doctor(f) => f.execute(session).await,
            Self::Events(f) => f.execute(session).await,
            Self::Images(c) => c.execute(session).await,
            Self::Leases(c) => c.execute(session).await,
            Self::Namespaces(c) => c.execute(session).await,
            Self::Oci(c) => c.execute(session),
            Self::Run(f) => f.execute(session).await,
            Self::Shims(c) => c.execute(session).await,
            Self::Snapshots(g) => g.execute(session).await,
            Self::Tasks(c) => c.execute(session).await,
        }
    }
}

/// The socket to use when none is given.
pub(crate) fn default_address(program: &str) -> &'static str {
    if program == "ctr" { CONTAINERD_ADDRESS } else { GANTRY_ADDRESS }
}

/// A time as Go writes it: numbers with units, `1h30m`, `500ms`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time such as 30s or 1h30m");
    let mut total = 0.0;
    let mut rest = text;
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        total += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_go_s() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "1x", "1s2", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err() || bad.is_empty(), "{bad}");
        }
    }
}
