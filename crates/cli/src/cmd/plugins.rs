//! `plugins`.

use clap::{Args, Subcommand};
use gantry_api::containerd::runc::v1 as runc;
use gantry_client::core::Any;
use gantry_client::{PluginRecord, RuntimeInfo};
use gantry_core::platforms;
use gantry_errdefs::Result;
use serde_json::{Map, Value, json};

use crate::output::{self, Table};
use crate::session::Session;

/// Default runtime.
const RUNTIME: &str = "io.containerd.runc.v2";

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
    /// Show what a runtime says of itself
    InspectRuntime(InspectRuntimeFlags),
}

#[derive(Debug, Args)]
pub(crate) struct InspectRuntimeFlags {
    /// Runtime, or the path of a shim
    #[arg(long, value_name = "NAME", default_value = RUNTIME)]
    runtime: String,
    /// Program that makes containers, instead of runc
    #[arg(long, value_name = "PROGRAM", default_value = "")]
    runc_binary: String,
    /// State directory of that program
    #[arg(long, value_name = "DIR", default_value = "")]
    runc_root: String,
    /// Let systemd manage cgroups
    #[arg(long)]
    runc_systemd_cgroup: bool,
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        match self {
            Self::List { quiet, detailed, filters } => {
                list(session, quiet, detailed, &filters).await?;
            }
            Self::InspectRuntime(flags) => {
                let options = flags.options();
                let introspection = session.client.introspection();
                let info = introspection.runtime(&flags.runtime, options.as_ref()).await?;
                output::json(&runtime_json(&info));
            }
        }
        Ok(0)
    }
}

impl InspectRuntimeFlags {
    /// Options of runc's shim, when a flag asks for some.
    fn options(&self) -> Option<Any> {
        let options = runc::Options {
            binary_name: self.runc_binary.clone(),
            root: self.runc_root.clone(),
            systemd_cgroup: self.runc_systemd_cgroup,
            ..runc::Options::default()
        };
        (options != runc::Options::default()).then(|| gantry_client::pack_any(&options))
    }
}

async fn list(session: &Session, quiet: bool, detailed: bool, filters: &[String]) -> Result<()> {
    let plugins = session.client.introspection().plugins(filters).await?;
    if quiet {
        for plugin in &plugins {
            output::line(format!("{}.{}", plugin.kind, plugin.id));
        }
        return Ok(());
    }
    if detailed {
        plugins.iter().for_each(show);
        return Ok(());
    }
    let mut table = Table::wide(&["TYPE", "ID", "PLATFORMS", "STATUS"]);
    for plugin in plugins {
        let platforms: Vec<_> = plugin.platforms.iter().map(platforms::format).collect();
        let platforms = if platforms.is_empty() { "-".to_owned() } else { platforms.join(",") };
        let status = status(&plugin);
        table.row([plugin.kind.into(), plugin.id.into(), platforms.into(), status.into()]);
    }
    table.print(session.format);
    Ok(())
}

/// What a runtime says of itself, in ctr's shape.
fn runtime_json(info: &RuntimeInfo) -> Value {
    let annotations = match info.annotations.is_empty() {
        true => Value::Null,
        false => json!(info.annotations),
    };
    json!({
        "Name": info.name,
        "Version": {"Version": info.version, "Revision": info.revision},
        "Options": info.options.as_ref().map(any_json),
        "Features": info.features.as_ref().map(any_json),
        "Annotations": annotations,
    })
}

/// A value of runc's options or of JSON; of anything else, its type.
fn any_json(value: &Any) -> Value {
    if let Ok(Some(options)) = gantry_client::unpack_any::<runc::Options>(value) {
        return options_json(&options);
    }
    serde_json::from_slice(&value.value).unwrap_or_else(|_| json!({"type_url": value.type_url}))
}

/// The options that are set.
fn options_json(options: &runc::Options) -> Value {
    let all = json!({
        "no_pivot_root": options.no_pivot_root,
        "no_new_keyring": options.no_new_keyring,
        "shim_cgroup": options.shim_cgroup,
        "io_uid": options.io_uid,
        "io_gid": options.io_gid,
        "binary_name": options.binary_name,
        "root": options.root,
        "systemd_cgroup": options.systemd_cgroup,
        "criu_image_path": options.criu_image_path,
        "criu_work_path": options.criu_work_path,
    });
    let Value::Object(all) = all else { return all };
    let is_set = |v: &Value| !matches!(v, Value::Bool(false)) && *v != json!(0) && *v != json!("");
    Value::Object(all.into_iter().filter(|(_, v)| is_set(v)).collect::<Map<_, _>>())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_shown_in_ctr_s_shape() {
        let options = runc::Options {
            binary_name: "crun".to_owned(),
            systemd_cgroup: true,
            ..runc::Options::default()
        };
        let features = Any { type_url: "x/Features".to_owned(), value: b"{\"hooks\":[]}".to_vec() };
        let info = RuntimeInfo {
            name: RUNTIME.to_owned(),
            version: "v2".to_owned(),
            revision: String::new(),
            options: Some(gantry_client::pack_any(&options)),
            features: Some(features),
            annotations: Default::default(),
        };
        let want = json!({
            "Name": RUNTIME,
            "Version": {"Version": "v2", "Revision": ""},
            "Options": {"binary_name": "crun", "systemd_cgroup": true},
            "Features": {"hooks": []},
            "Annotations": null,
        });
        assert_eq!(runtime_json(&info), want);
        let strange = Any { type_url: "x/Y".to_owned(), value: vec![1] };
        assert_eq!(any_json(&strange), json!({"type_url": "x/Y"}));
    }
}
