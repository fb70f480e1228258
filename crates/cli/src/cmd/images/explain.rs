//! `images explain`.

use clap::Args;
use gantry_client::{Explained, RegistryStep, explain_pull};
use gantry_core::Platform;
use gantry_errdefs::{Error, Result};
use serde_json::json;

use crate::cmd::transfer::parse_platform;
use crate::output::{self, Format};
use crate::registry_flags::RegistryFlags;
use crate::session::Session;

/// The plugin that pulls.
const TRANSFER_PLUGIN: &str = "io.containerd.transfer.v1";

/// What gantryd tells of it: the directories with hosts.toml files.
const HOSTS_DIR_EXPORT: &str = "config_path";

#[derive(Clone, Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    registry: RegistryFlags,
    /// Platform, instead of this machine's
    #[arg(long, value_name = "PLATFORM", value_parser = parse_platform)]
    platform: Option<Platform>,
    /// Full reference, such as docker.io/library/busybox:latest
    reference: String,
}

impl Flags {
    pub(crate) async fn execute(self, session: &Session) -> Result<()> {
        let (mut options, source) = self.registry.options_and_source(&self.reference)?;
        let mut whose = "--hosts-dir";
        if options.hosts_dir.is_empty() && !self.registry.needs_local() {
            whose = "the daemon's";
            options.hosts_dir = daemons_hosts_dir(session).await.unwrap_or_else(|err| {
                let text = format!("which hosts the daemon has is not known: {}", err.text());
                output::warning("gantry", &text);
                String::new()
            });
        }
        let as_json = session.format == Format::Json;
        if as_json {
            output::line(json!({"step": "credentials", "source": source}).to_string());
            if !options.hosts_dir.is_empty() {
                let dir = json!({"step": "hosts_dir", "dir": options.hosts_dir, "source": whose});
                output::line(dir.to_string());
            }
        } else {
            output::line(format!("reference    {}", self.reference));
            output::line(format!("credentials  {source}"));
            if !options.hosts_dir.is_empty() {
                output::line(format!("hosts dir    {} ({whose})", options.hosts_dir));
            }
        }
        let told = move |step: RegistryStep| {
            if as_json {
                output::line(serde_json::to_string(&step).unwrap_or_default());
            } else {
                step.lines().into_iter().for_each(output::line);
            }
        };
        let platform = self.platform.as_ref();
        let found = explain_pull(&self.reference, &options, platform, told).await?;
        if as_json {
            output::line(
                json!({
                    "step": "found", "target": found.target, "manifest": found.manifest,
                    "layers_size": found.layers_size,
                })
                .to_string(),
            );
        } else {
            summary(&found).into_iter().for_each(output::line);
        }
        Ok(())
    }
}

/// Where the daemon that would pull looks for hosts.toml files; empty for nowhere.
async fn daemons_hosts_dir(session: &Session) -> Result<String> {
    let filter = format!("type=={TRANSFER_PLUGIN}");
    let plugins = session.client.introspection().plugins(&[filter]).await?;
    let dir = plugins.into_iter().find_map(|mut plugin| plugin.exports.remove(HOSTS_DIR_EXPORT));
    dir.ok_or_else(|| Error::not_found("it does not say"))
}

fn summary(found: &Explained) -> Vec<String> {
    let (target, manifest) = (&found.target, &found.manifest);
    let mut lines = vec![format!("stands for   {} {}", target.digest, target.media_type)];
    if manifest.digest != target.digest {
        lines.push(format!("manifest     {} {}", manifest.digest, manifest.media_type));
    }
    let size = output::bytes(found.layers_size);
    lines.push(format!("layers       {size}"));
    lines
}
