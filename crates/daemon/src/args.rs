//! The command line of `gantryd`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use gantry_errdefs::Result;

use crate::config::{Config, Flavour, Loaded};

/// The daemon: pulls images, keeps content and snapshots, runs containers.
#[derive(Debug, Parser)]
#[command(name = "gantryd", version, about, disable_help_subcommand = true)]
pub struct Args {
    /// Options of the daemon; they beat the file.
    #[command(flatten)]
    pub global: Global,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options that beat the configuration file.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Global {
    /// Path to the configuration file
    #[arg(long, short = 'c', global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Logging level: trace, debug, info, warn, error, fatal, panic
    #[arg(long, short = 'l', global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Address of the gRPC socket
    #[arg(long, short = 'a', global = true, value_name = "SOCKET")]
    pub address: Option<String>,
    /// Root directory of persistent state
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Directory of state that a reboot clears
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print configuration
    Config {
        /// Which one
        #[command(subcommand)]
        which: ConfigCommand,
    },
    /// Publish the event read from standard input (an encoded google.protobuf.Any)
    Publish {
        /// Namespace to publish in
        #[arg(long)]
        namespace: String,
        /// Topic of the event
        #[arg(long)]
        topic: String,
    },
    /// Run a program as an OCI hook, with the container's state expanded into its arguments
    OciHook {
        /// Program and arguments, with {{id}}, {{bundle}}, {{rootfs}}, {{pid}}, {{status}} and
        /// {{annotation "key"}}
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// What `config` prints.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ConfigCommand {
    /// The defaults
    Default,
    /// What is in force: files, drop-ins and flags together
    Dump,
    /// The file in the newest schema
    Migrate,
}

impl Global {
    /// The configuration in force: the file, then the flags over it.
    ///
    /// # Errors
    /// As [`Config::load`] and [`Config::validate`].
    pub fn load(&self, flavour: Flavour) -> Result<Loaded> {
        let mut loaded = Config::load(self.config.as_deref(), flavour)?;
        let config = &mut loaded.config;
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        if let Some(state) = &self.state {
            config.state.clone_from(state);
        }
        if let Some(address) = &self.address {
            config.set_address(address);
        }
        if let Some(level) = &self.log_level {
            config.debug.level.clone_from(level);
        }
        loaded.config.validate()?;
        Ok(loaded)
    }

    /// The gRPC socket alone, for subcommands that are clients.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn client_address(&self, flavour: Flavour) -> Result<String> {
        match &self.address {
            Some(address) => Ok(address.clone()),
            None => Ok(Config::load(self.config.as_deref(), flavour)?.config.address().to_owned()),
        }
    }
}
