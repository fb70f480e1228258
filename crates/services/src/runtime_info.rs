//! What introspection tells of a runtime when asked with options.

use gantry_api::Payload as _;
use gantry_api::TypeUrl as _;
use gantry_api::containerd::types::{RuntimeInfo, RuntimeRequest};
use gantry_errdefs::{Error, Result};
use gantry_runtime::Manager;
use prost_types::Any;

use crate::convert;
use crate::introspection::PluginDetails;

/// Asks the shim program that a client names for its features.
#[derive(Clone, Debug)]
pub struct RuntimeDetails {
    manager: Manager,
}

impl RuntimeDetails {
    /// Details from `manager`.
    pub fn new(manager: Manager) -> Self {
        Self { manager }
    }
}

#[tonic::async_trait]
impl PluginDetails for RuntimeDetails {
    async fn details(&self, options: Any) -> Result<Any> {
        let request: RuntimeRequest = options.unpack()?.ok_or_else(|| {
            Error::invalid_argument(format!(
                "runtime information: expect RuntimeRequest, got {:?}",
                options.type_url
            ))
        })?;
        let shim_options = request.options.map(convert::any);
        let value = self.manager.info(&request.runtime_path, shim_options.as_ref()).await?;
        Ok(Any { type_url: RuntimeInfo::type_url_bare(), value })
    }
}
