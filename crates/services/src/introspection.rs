//! `containerd.services.introspection.v1`: what the daemon is made of.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use gantry_api::containerd::services::introspection::v1 as wire;
use gantry_api::containerd::services::introspection::v1::introspection_server::Introspection;
use gantry_api::google::rpc;
use gantry_core::{Platform, filters};
use gantry_errdefs::Error;
use tonic::{Request, Response, Status};

use crate::convert;

/// One part of the daemon, as clients see it: they pick snapshotters and check capabilities here.
#[derive(Clone, Debug, Default)]
pub struct Plugin {
    /// Type, such as `io.containerd.snapshotter.v1`.
    pub kind: String,
    /// Name within the type.
    pub id: String,
    /// Types it builds on.
    pub requires: Vec<String>,
    /// Platforms it serves.
    pub platforms: Vec<Platform>,
    /// What it tells about itself.
    pub exports: BTreeMap<String, String>,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Why it does not work, as code and text.
    pub init_error: Option<(i32, String)>,
}

impl Plugin {
    /// A working part without particulars.
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into(), ..Self::default() }
    }

    /// The same, needing parts of the types `requires`.
    #[must_use]
    pub fn requires(mut self, requires: &[&str]) -> Self {
        self.requires = requires.iter().map(|r| (*r).to_owned()).collect();
        self
    }

    /// The same, telling `key` to be `value`.
    #[must_use]
    pub fn export(mut self, key: &str, value: impl Into<String>) -> Self {
        self.exports.insert(key.to_owned(), value.into());
        self
    }

    /// The same, able to do `capabilities`.
    #[must_use]
    pub fn capabilities(mut self, capabilities: &[&str]) -> Self {
        self.capabilities = capabilities.iter().map(|c| (*c).to_owned()).collect();
        self
    }

    /// The same, serving the host's platform.
    #[must_use]
    pub fn host_platform(mut self) -> Self {
        self.platforms = vec![gantry_core::platforms::default()];
        self
    }

    /// The same, not started because of `error`.
    #[must_use]
    pub fn failed(mut self, error: &Error) -> Self {
        self.init_error = Some((error.class().code(), error.text()));
        self
    }
}

impl filters::Adaptor for Plugin {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["type"] => filters::text_field(&self.kind),
            ["id"] => filters::text_field(&self.id),
            ["capabilities"] => Some(Cow::Owned(self.capabilities.join(","))),
            _ => None,
        }
    }
}

/// Answers live questions about one part (`PluginInfo` with options).
#[tonic::async_trait]
pub trait PluginDetails: Send + Sync {
    /// The answer to `options`.
    ///
    /// # Errors
    /// What the part says.
    async fn details(&self, options: prost_types::Any) -> gantry_errdefs::Result<prost_types::Any>;
}

/// Tells what the daemon is made of.
pub struct IntrospectionService {
    uuid: String,
    plugins: Arc<[Plugin]>,
    details: BTreeMap<(String, String), Arc<dyn PluginDetails>>,
}

impl IntrospectionService {
    /// A service that lists `plugins` in the order given. `uuid` names this installation and must
    /// outlive restarts.
    pub fn new(uuid: impl Into<String>, plugins: impl Into<Arc<[Plugin]>>) -> Self {
        Self { uuid: uuid.into(), plugins: plugins.into(), details: BTreeMap::new() }
    }

    /// Adds who answers live questions about the part `kind`/`id`.
    #[must_use]
    pub fn with_details(mut self, kind: &str, id: &str, details: Arc<dyn PluginDetails>) -> Self {
        self.details.insert((kind.to_owned(), id.to_owned()), details);
        self
    }
}

impl std::fmt::Debug for IntrospectionService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntrospectionService").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

fn to_wire(plugin: &Plugin) -> wire::Plugin {
    wire::Plugin {
        r#type: plugin.kind.clone(),
        id: plugin.id.clone(),
        requires: plugin.requires.clone(),
        platforms: plugin.platforms.iter().map(convert::platform_to_wire).collect(),
        exports: plugin.exports.clone().into_iter().collect(),
        capabilities: plugin.capabilities.clone(),
        init_err: plugin.init_error.as_ref().map(|(code, message)| rpc::Status {
            code: *code,
            message: message.clone(),
            details: Vec::new(),
        }),
    }
}

#[tonic::async_trait]
impl Introspection for IntrospectionService {
    async fn plugins(
        &self,
        request: Request<wire::PluginsRequest>,
    ) -> Result<Response<wire::PluginsResponse>, Status> {
        let filter = filters::parse_all(&request.get_ref().filters)?;
        let plugins = self.plugins.iter().filter(|p| filter.matches(*p)).map(to_wire).collect();
        Ok(Response::new(wire::PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<wire::ServerResponse>, Status> {
        // Without /proc the inode is unknown, which clients take as "do not compare".
        let pidns = std::fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino());
        Ok(Response::new(wire::ServerResponse {
            uuid: self.uuid.clone(),
            pid: u64::from(std::process::id()),
            pidns,
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(
        &self,
        request: Request<wire::PluginInfoRequest>,
    ) -> Result<Response<wire::PluginInfoResponse>, Status> {
        let request = request.into_inner();
        let name = format!("plugin {}.{}", request.r#type, request.id);
        let plugin = self
            .plugins
            .iter()
            .find(|p| p.kind == request.r#type && p.id == request.id)
            .ok_or_else(|| Error::not_found(&name))?;
        if let Some((_, why)) = &plugin.init_error {
            return Err(Error::failed_precondition(format!("{name}: not loaded: {why}")).into());
        }
        let extra = match request.options {
            None => None,
            Some(options) => {
                let key = (request.r#type, request.id);
                let details = self.details.get(&key).ok_or_else(|| {
                    Error::unimplemented(format!("{name}: no information provider"))
                })?;
                Some(details.details(options).await?)
            }
        };
        Ok(Response::new(wire::PluginInfoResponse { plugin: Some(to_wire(plugin)), extra }))
    }
}
