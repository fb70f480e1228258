//! Who we are to a registry.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use gantry_errdefs::Result;

/// A way to prove who we are. Debug output never shows secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password (or access token in its place).
    Basic {
        /// User name.
        username: String,
        /// Password.
        secret: String,
    },
    /// An OAuth2 refresh token, also called identity token, for the token server.
    RefreshToken(String),
    /// A whole `Authorization` header, sent as it is.
    Header(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credential::Basic(..)",
            Self::RefreshToken(_) => "Credential::RefreshToken(..)",
            Self::Header(_) => "Credential::Header(..)",
        })
    }
}

/// What credentials are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthRequest {
    /// The host that asked, with its port: the mirror's own name for a mirror.
    pub host: String,
    /// The full image reference being transferred.
    pub reference: String,
    /// The `WWW-Authenticate` headers of the refusal.
    pub challenges: Vec<String>,
}

/// Knows credentials by host.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// The credential for a host, or None to go on without. Called when a host asks, at most once
    /// per token; what it returned is never sent to any other host than the one asked for and
    /// that host's token server.
    async fn get(&self, request: &AuthRequest) -> Result<Option<Credential>>;
}

/// No credentials at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn get(&self, _: &AuthRequest) -> Result<Option<Credential>> {
        Ok(None)
    }
}

/// Credentials from a table of hosts; `docker.io` also serves `registry-1.docker.io`.
#[derive(Clone, Debug, Default)]
pub struct StaticCredentials(pub HashMap<String, Credential>);

#[async_trait]
impl Credentials for StaticCredentials {
    async fn get(&self, request: &AuthRequest) -> Result<Option<Credential>> {
        let alias = (request.host == crate::hosts::DOCKER_ENDPOINT).then_some("docker.io");
        let found = self.0.get(&request.host).or_else(|| self.0.get(alias?));
        Ok(found.cloned())
    }
}
