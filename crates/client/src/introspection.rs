//! What the daemon is made of.

use std::time::SystemTime;

use gantry_api::Payload as _;
use gantry_api::containerd::services::introspection::v1 as wire;
use gantry_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use gantry_api::containerd::types;
use gantry_core::{Any, Labels, Platform};
use gantry_errdefs::{Error, Result};

use crate::client::{handle, service};
use crate::convert::{any, any_out, labels, platform, required, status, time_of};

handle! {
    /// The introspection service: plugins and the server's identity.
    Introspection, introspection
}

/// A part of the daemon.
#[derive(Debug)]
pub struct PluginRecord {
    /// Type, such as `io.containerd.snapshotter.v1`.
    pub kind: String,
    /// Id within the type.
    pub id: String,
    /// Types it needs.
    pub requires: Vec<String>,
    /// Platforms it works for.
    pub platforms: Vec<Platform>,
    /// Facts it tells others, such as its root directory.
    pub exports: Labels,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Why it is not running; a part that is left out on purpose says `skip plugin` in the text.
    pub failure: Option<Error>,
}

/// The server's identity.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// Stable id of the daemon's root.
    pub uuid: String,
    /// Pid; 0 when the daemon does not tell.
    pub pid: u64,
    /// Inode of its pid namespace; 0 when the daemon does not tell.
    pub pidns: u64,
    /// Deprecated features in use.
    pub deprecations: Vec<Deprecation>,
}

/// A deprecated feature that someone uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deprecation {
    /// Its id, such as `io.containerd.deprecation/pull-schema-1-image`.
    pub id: String,
    /// What to do about it.
    pub message: String,
    /// When it was used last, where the daemon tells.
    pub last_occurrence: Option<SystemTime>,
}

/// What a runtime's shim says of itself.
#[derive(Clone, Debug)]
pub struct RuntimeInfo {
    /// Name, such as `io.containerd.runc.v2`.
    pub name: String,
    /// Version of the shim.
    pub version: String,
    /// Commit it was built from; may be empty.
    pub revision: String,
    /// The options it was asked with.
    pub options: Option<Any>,
    /// What the program below the shim can do: JSON, for runc.
    pub features: Option<Any>,
    /// Further facts.
    pub annotations: Labels,
}

impl Introspection {
    /// The plugins that match any of `filters` (fields `type`, `id`); all when there are none.
    ///
    /// # Errors
    /// InvalidArgument for a bad filter.
    pub async fn plugins(&self, filters: &[String]) -> Result<Vec<PluginRecord>> {
        let request = wire::PluginsRequest { filters: filters.to_vec() };
        let answer = service!(self.client, IntrospectionClient)
            .plugins(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.plugins.into_iter().map(record).collect())
    }

    /// The server's identity.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn server(&self) -> Result<ServerInfo> {
        let answer = service!(self.client, IntrospectionClient)
            .server(self.client.request(()))
            .await
            .map_err(status)?
            .into_inner();
        let deprecation = |d: wire::DeprecationWarning| Deprecation {
            id: d.id,
            message: d.message,
            last_occurrence: d.last_occurrence.as_ref().map(time_of),
        };
        let deprecations = answer.deprecations.into_iter().map(deprecation).collect();
        Ok(ServerInfo { uuid: answer.uuid, pid: answer.pid, pidns: answer.pidns, deprecations })
    }

    /// What the shim of `runtime` (a name or the path of a program) says of itself when it is
    /// given `options`.
    ///
    /// # Errors
    /// NotFound for a runtime without a program; Unimplemented with a daemon before 2.0; the
    /// shim's own.
    pub async fn runtime(&self, runtime: &str, options: Option<&Any>) -> Result<RuntimeInfo> {
        let asked = types::RuntimeRequest {
            runtime_path: runtime.to_owned(),
            options: options.map(any_out),
        };
        let request = wire::PluginInfoRequest {
            r#type: "io.containerd.runtime.v2".to_owned(),
            id: "task".to_owned(),
            options: Some(prost_types::Any::pack(&asked)),
        };
        let answer = service!(self.client, IntrospectionClient)
            .plugin_info(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        let extra = required(answer.extra, "the runtime's information")?;
        let info: types::RuntimeInfo =
            required(extra.unpack()?, "the runtime's information in a known form")?;
        let version = info.version.unwrap_or_default();
        Ok(RuntimeInfo {
            name: info.name,
            version: version.version,
            revision: version.revision,
            options: info.options.map(any),
            features: info.features.map(any),
            annotations: labels(info.annotations),
        })
    }
}

fn record(plugin: wire::Plugin) -> PluginRecord {
    PluginRecord {
        kind: plugin.r#type,
        id: plugin.id,
        requires: plugin.requires,
        platforms: plugin.platforms.into_iter().map(platform).collect(),
        exports: labels(plugin.exports),
        capabilities: plugin.capabilities,
        failure: plugin.init_err.map(|e| Error::from_code(e.code, &e.message)),
    }
}
