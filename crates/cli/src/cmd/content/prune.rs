//! `content prune`.

use std::time::Duration;

use clap::{Args, Subcommand};
use gantry_client::LeaseOptions;
use gantry_core::Labels;
use gantry_errdefs::Result;

use crate::output;
use crate::session::Session;

/// Labels of content that keep other content.
const REFERENCE_PREFIX: &str = "containerd.io/gc.ref.content.";

/// When the lease that starts a collection ends by itself, should we die before deleting it.
const LEASE_LIFETIME: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let go of all layers as fetched; snapshots made of them stay
    References(ReferencesFlags),
}

#[derive(Debug, Args)]
pub(crate) struct ReferencesFlags {
    /// Leave the collection to the daemon instead of waiting for it
    #[arg(long = "async")]
    asynchronous: bool,
    /// Print the labels that would be removed, and change nothing
    #[arg(long)]
    dry: bool,
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<()> {
        let Self::References(flags) = self;
        flags.execute(session).await
    }
}

impl ReferencesFlags {
    async fn execute(self, session: &Session) -> Result<()> {
        let content = session.client.content();
        for info in content.list(&[]).await? {
            let cleared = without_layers(info.labels);
            if self.dry {
                cleared.keys().for_each(|key| output::line(format!("{} {key}", info.digest)));
                continue;
            }
            if cleared.is_empty() {
                continue;
            }
            match content.set_labels(&info.digest, &cleared).await {
                // Collected or deleted since it was listed.
                Err(e) if e.is_not_found() => {}
                other => drop(other?),
            }
        }
        if self.dry {
            return Ok(());
        }
        // The end of a lease is what starts a collection.
        let leases = session.client.leases();
        let options = LeaseOptions { expires: Some(LEASE_LIFETIME), ..LeaseOptions::default() };
        let lease = leases.create(options).await?;
        leases.delete(&lease.id, !self.asynchronous).await
    }
}

/// The change to the labels of a manifest after which it keeps none of its layers; empty when it
/// keeps none already.
pub(crate) fn without_layers(labels: Labels) -> Labels {
    let keep_layers = labels.into_keys().filter(|key| is_layer_reference(key));
    keep_layers.map(|key| (key, String::new())).collect()
}

/// Whether a label keeps a layer: `l.<n>`, or as old daemons wrote it, a number other than the
/// config's 0.
fn is_layer_reference(key: &str) -> bool {
    let Some(suffix) = key.strip_prefix(REFERENCE_PREFIX) else { return false };
    let is_number = !suffix.is_empty() && suffix.bytes().all(|b| b.is_ascii_digit());
    suffix.starts_with("l.") || (is_number && suffix != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_of_layers_are_pruned() {
        for key in ["l.0", "l.12", "1", "10"] {
            assert!(is_layer_reference(&format!("{REFERENCE_PREFIX}{key}")), "{key}");
        }
        for key in ["config", "m.0", "0", "", "1a", "list", "subject"] {
            assert!(!is_layer_reference(&format!("{REFERENCE_PREFIX}{key}")), "{key}");
        }
        assert!(!is_layer_reference("containerd.io/gc.ref.snapshot.overlayfs"));
        assert!(!is_layer_reference("l.0"));
    }
}
