//! What the daemon is made of.

use gantry_api::containerd::services::introspection::v1 as wire;
use gantry_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use gantry_core::{Labels, Platform};
use gantry_errdefs::{Error, Result};

use crate::client::{handle, service};
use crate::convert::{labels, platform, status};

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
    /// Deprecated features in use, as (id, message).
    pub deprecations: Vec<(String, String)>,
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
        let deprecations = answer.deprecations.into_iter().map(|d| (d.id, d.message)).collect();
        Ok(ServerInfo { uuid: answer.uuid, pid: answer.pid, pidns: answer.pidns, deprecations })
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
