//! `images explain`.

use clap::Args;
use gantry_client::{Explained, RegistryStep, explain_pull};
use gantry_core::Platform;
use gantry_errdefs::Result;
use serde_json::json;

use crate::cmd::transfer::parse_platform;
use crate::output::{self, Format};
use crate::registry_flags::RegistryFlags;
use crate::session::Session;

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
        let (options, source) = self.registry.options_and_source(&self.reference)?;
        let as_json = session.format == Format::Json;
        if as_json {
            output::line(json!({"step": "credentials", "source": source}).to_string());
        } else {
            output::line(format!("reference    {}", self.reference));
            output::line(format!("credentials  {source}"));
        }
        let told = move |step: RegistryStep| {
            if as_json {
                output::line(serde_json::to_string(&step).unwrap_or_default());
            } else {
                lines(&step).into_iter().for_each(output::line);
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

/// A step for people.
fn lines(step: &RegistryStep) -> Vec<String> {
    match step {
        RegistryStep::Hosts { registry, hosts } => {
            let mut lines = vec![format!("hosts of {registry}, in the order they are tried")];
            for (n, host) in hosts.iter().enumerate() {
                let kind = if host.mirror { "mirror" } else { "the registry" };
                let may = host.capabilities.join(", ");
                lines.push(format!("  {}. {}  {kind}: {may}", n + 1, host.host));
            }
            lines
        }
        RegistryStep::Asked { method, address, status, protocol, millis } => {
            vec![format!("{method} {address}  {status} {protocol} in {millis} ms")]
        }
        RegistryStep::Unanswered { method, address, reason } => {
            vec![format!("{method} {address}  no answer: {reason}")]
        }
        RegistryStep::Challenged { host, challenges } => {
            vec![format!("  {host} wants to know who we are: {}", challenges.join("; "))]
        }
        RegistryStep::Credential { host, kind } => vec![format!("  told {host}: {kind}")],
        RegistryStep::Token { server, outcome } => {
            vec![format!("  token server {server}: {outcome}")]
        }
        RegistryStep::Skipped { host, reason } => vec![format!("  {host} passed over: {reason}")],
    }
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
