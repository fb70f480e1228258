//! What happens on the way to a registry, told step by step, for people who wonder.

use std::time::Duration;

use serde::Serialize;
use url::Url;

/// One step. No step holds a secret: addresses come without their queries, which may be signed,
/// and of credentials only their kind is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// The hosts of a registry were looked up.
    Hosts {
        /// The registry, as the reference names it.
        registry: String,
        /// Its hosts in the order they are tried.
        hosts: Vec<HostStep>,
    },
    /// A request was answered.
    Asked {
        /// Method of the request.
        method: String,
        /// Where it went.
        address: String,
        /// Status of the answer.
        status: u16,
        /// Protocol of the answer.
        protocol: String,
        /// Milliseconds until the head of the answer was there.
        millis: u64,
    },
    /// A request was not answered.
    Unanswered {
        /// Method of the request.
        method: String,
        /// Where it went.
        address: String,
        /// Why there is no answer.
        reason: String,
    },
    /// A host wants to know who we are.
    Challenged {
        /// The host.
        host: String,
        /// How it wants to know it.
        challenges: Vec<String>,
    },
    /// What a host is told of who we are.
    Credential {
        /// The host.
        host: String,
        /// anonymous, password, refresh token or header.
        kind: String,
    },
    /// A token server was asked.
    Token {
        /// The server.
        server: String,
        /// What came of it.
        outcome: String,
    },
    /// A host was passed over.
    Skipped {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
}

/// One host of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostStep {
    /// `scheme://authority`.
    pub host: String,
    /// Whether it is asked in the registry's stead.
    pub mirror: bool,
    /// What it may be asked for: pull, resolve, push, referrers.
    pub capabilities: Vec<&'static str>,
}

/// Who is told. Called in the middle of requests: it must not wait.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn step(&self, step: Step);
}

/// An address without what may be secret in it.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.into()
}

/// Whole milliseconds.
pub(crate) fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
