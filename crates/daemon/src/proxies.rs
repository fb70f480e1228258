//! What `[proxy_plugins]` names: parts of the daemon in other processes.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_content::Store as ContentStore;
use gantry_core::platforms;
use gantry_errdefs::{Error, Result};
use gantry_images::LayerDiffer;
use gantry_proxy::{Plugin as Connection, ProxyDiffer, ProxySnapshotter, ProxyStore};
use gantry_services::Plugin;
use tracing::warn;

use crate::config::{Config, ProxyPlugin};
use crate::snapshotters::{self, SNAPSHOTTER};

/// Plugin type of content stores.
const CONTENT: &str = "io.containerd.content.v1";

/// Plugin type of differs.
pub(crate) const DIFFER: &str = "io.containerd.differ.v1";

/// Plugin type of sandbox controllers.
pub(crate) const SANDBOXER: &str = "io.containerd.sandbox.controller.v1";

/// The plugins in other processes, by name.
#[derive(Default)]
pub(crate) struct Proxies {
    pub(crate) snapshotters: BTreeMap<String, Arc<ProxySnapshotter>>,
    pub(crate) differs: BTreeMap<String, Arc<dyn LayerDiffer>>,
    pub(crate) sandboxers: BTreeMap<String, Connection>,
    /// Instead of the built-in one.
    pub(crate) content: Option<Arc<dyn ContentStore>>,
    /// How introspection shows them.
    pub(crate) plugins: Vec<Plugin>,
}

impl Proxies {
    /// Takes in what the configuration names. Nothing is connected yet. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// FailedPrecondition for a name that something built in has as well, and for a content store
    /// beside another.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let mut proxies = Self::default();
        for (name, section) in &config.proxy_plugins {
            let Some(kind) = plugin_type(&section.kind) else {
                warn!(plugin = name, kind = section.kind, "proxy plugin of unknown type: ignored");
                continue;
            };
            // Of a name that is built in as well the entry switches off what is built in.
            if config.is_disabled(kind, name) && !is_built_in(kind, name) {
                continue;
            }
            let plugin = describe(kind, name, section);
            match Connection::new(name, &section.address) {
                Ok(connection) => {
                    proxies.add(config, kind, connection)?;
                    proxies.plugins.push(plugin);
                }
                Err(err) => {
                    warn!(plugin = name, error = %err, "not available");
                    proxies.plugins.push(plugin.failed(&err));
                }
            }
        }
        Ok(proxies)
    }

    fn add(&mut self, config: &Config, kind: &str, connection: Connection) -> Result<()> {
        let name = connection.name().to_owned();
        let taken = |id: &str| {
            Err(Error::failed_precondition(format!(
                "proxy plugin {name:?}: {kind}.{id} is built in: add it to disabled_plugins"
            )))
        };
        match kind {
            SNAPSHOTTER => {
                if is_built_in(kind, &name) && !config.is_disabled(SNAPSHOTTER, &name) {
                    return taken(&name);
                }
                self.snapshotters.insert(name, Arc::new(ProxySnapshotter::new(connection)));
            }
            CONTENT => {
                if !config.is_disabled(CONTENT, "content") {
                    return taken("content");
                }
                if self.content.is_some() {
                    return Err(Error::failed_precondition(format!(
                        "proxy plugin {name:?}: there is another content store"
                    )));
                }
                self.content = Some(Arc::new(ProxyStore::new(connection)));
            }
            DIFFER => {
                if is_built_in(kind, &name) {
                    return taken(&name);
                }
                self.differs.insert(name, Arc::new(ProxyDiffer::new(connection)));
            }
            _ => {
                if is_built_in(kind, &name) {
                    return taken(&name);
                }
                self.sandboxers.insert(name, connection);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies").field("plugins", &self.plugins).finish_non_exhaustive()
    }
}

fn is_built_in(kind: &str, name: &str) -> bool {
    match kind {
        SNAPSHOTTER => snapshotters::BUILT_IN.contains(&name),
        CONTENT => name == "content",
        DIFFER => name == crate::plugins::WALKING,
        _ => name == "shim",
    }
}

/// The plugin type that the configuration's word stands for.
fn plugin_type(word: &str) -> Option<&'static str> {
    match word {
        "snapshot" => Some(SNAPSHOTTER),
        "content" => Some(CONTENT),
        "diff" => Some(DIFFER),
        "sandbox" => Some(SANDBOXER),
        _ => None,
    }
}

fn describe(kind: &str, name: &str, section: &ProxyPlugin) -> Plugin {
    let capabilities: Vec<&str> = section.capabilities.iter().map(String::as_str).collect();
    let mut plugin = Plugin::new(kind, name).capabilities(&capabilities).host_platform();
    match platforms::parse(&section.platform) {
        _ if section.platform.is_empty() => {}
        Ok(platform) => plugin.platforms = vec![platform],
        Err(err) => warn!(plugin = name, error = %err, "platform of a proxy plugin"),
    }
    for (key, value) in &section.exports {
        plugin = plugin.export(key, value);
    }
    plugin.export("address", &section.address)
}
