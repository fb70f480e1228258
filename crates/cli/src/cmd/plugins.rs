//! `plugins`.

use clap::Subcommand;
use gantry_client::PluginRecord;
use gantry_core::platforms;
use gantry_errdefs::Result;

use crate::output::{self, Table};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the daemon's parts
    #[command(visible_alias = "ls")]
    List {
        /// Print type and id only
        #[arg(long, short)]
        quiet: bool,
        /// Print everything known
        #[arg(long, short)]
        detailed: bool,
        /// Filters, such as type==io.containerd.snapshotter.v1
        filters: Vec<String>,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let Self::List { quiet, detailed, filters } = self;
        let plugins = session.client.introspection().plugins(&filters).await?;
        if quiet {
            for plugin in &plugins {
                output::line(format!("{}.{}", plugin.kind, plugin.id));
            }
            return Ok(0);
        }
        if detailed {
            plugins.iter().for_each(show);
            return Ok(0);
        }
        let mut table = Table::wide(&["TYPE", "ID", "PLATFORMS", "STATUS"]);
        for plugin in plugins {
            let platforms: Vec<_> = plugin.platforms.iter().map(platforms::format).collect();
            let platforms = if platforms.is_empty() { "-".to_owned() } else { platforms.join(",") };
            let status = status(&plugin);
            table.row([plugin.kind.into(), plugin.id.into(), platforms.into(), status.into()]);
        }
        table.print(session.format);
        Ok(0)
    }
}

fn status(plugin: &PluginRecord) -> &'static str {
    match &plugin.failure {
        None => "ok",
        Some(e) if e.text().contains("skip plugin") => "skip",
        Some(_) => "error",
    }
}

fn show(plugin: &PluginRecord) {
    let mut lines =
        vec![format!("Type:          {}", plugin.kind), format!("ID:            {}", plugin.id)];
    if !plugin.requires.is_empty() {
        lines.push("Requires:".to_owned());
        lines.extend(plugin.requires.iter().map(|r| format!("               {r}")));
    }
    if !plugin.platforms.is_empty() {
        let all: Vec<_> = plugin.platforms.iter().map(platforms::format).collect();
        lines.push(format!("Platforms:     {}", all.join(",")));
    }
    if !plugin.exports.is_empty() {
        lines.push("Exports:".to_owned());
        lines.extend(plugin.exports.iter().map(|(k, v)| format!("               {k:<14} {v}")));
    }
    if !plugin.capabilities.is_empty() {
        lines.push(format!("Capabilities:  {}", plugin.capabilities.join(",")));
    }
    if let Some(failure) = &plugin.failure {
        lines.push("Error:".to_owned());
        lines.push(format!("               Code:    {:?}", failure.class()));
        lines.push(format!("               Message: {}", failure.text()));
    }
    output::line(lines.join("\n") + "\n");
}
