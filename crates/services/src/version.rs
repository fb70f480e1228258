//! `containerd.services.version.v1`.

use gantry_api::containerd::services::version::v1::VersionResponse;
use gantry_api::containerd::services::version::v1::version_server::Version;
use tonic::{Request, Response, Status};

/// The version clients are told. They parse it as containerd's and switch features on by it:
/// 2.0.0 and above means that transfer and streaming are there.
pub const COMPAT_VERSION: &str = "2.3.4+gantry";

/// Tells which containerd release this daemon behaves like.
#[derive(Debug)]
pub struct VersionService {
    version: String,
    revision: String,
}

impl VersionService {
    /// A service that answers `version` and `revision`.
    pub fn new(version: impl Into<String>, revision: impl Into<String>) -> Self {
        Self { version: version.into(), revision: revision.into() }
    }
}

#[tonic::async_trait]
impl Version for VersionService {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: self.version.clone(),
            revision: self.revision.clone(),
        }))
    }
}
