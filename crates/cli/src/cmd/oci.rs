//! `oci`.

use clap::Subcommand;
use gantry_errdefs::{Error, Result};
use serde_json::{Value, json};

use crate::output;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the spec that a container gets if nothing else is asked for
    Spec,
}

impl Command {
    pub(crate) fn execute(&self, session: &Session) -> Result<u8> {
        let Self::Spec = self;
        output::json(&spec(session.client.namespace())?);
        Ok(0)
    }
}

/// The default spec of a container that has no id yet. Sets are sorted: the same spec is the same text.
fn spec(namespace: &str) -> Result<Value> {
    let mut spec = serde_json::to_value(gantry_oci::default_spec(namespace, ""))
        .map_err(|e| Error::internal(format!("encoding a spec: {e}")))?;
    spec["linux"]["cgroupsPath"] = json!(format!("/{namespace}"));
    if let Some(sets) = spec["process"]["capabilities"].as_object_mut() {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    Ok(spec)
}
