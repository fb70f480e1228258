//! What happens on the way to a registry, told step by step, for people who wonder.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
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
    /// The heads of a request and of its answer, for [`Observer::heads`]; what may be secret in
    /// them is left out.
    Heads {
        /// Method of the request.
        method: String,
        /// Where it went.
        address: String,
        /// Its headers.
        sent: Vec<(String, String)>,
        /// Status and protocol of the answer; None when there is none.
        status: Option<String>,
        /// Headers of the answer.
        received: Vec<(String, String)>,
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

    /// Whether [`Step::Heads`] are told, too.
    fn heads(&self) -> bool {
        false
    }
}

impl Step {
    /// The step as text for people.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Hosts { registry, hosts } => {
                let mut lines = vec![format!("hosts of {registry}, in the order they are tried")];
                for (n, host) in hosts.iter().enumerate() {
                    let kind = if host.mirror { "mirror" } else { "the registry" };
                    let may = host.capabilities.join(", ");
                    lines.push(format!("  {}. {}  {kind}: {may}", n + 1, host.host));
                }
                lines
            }
            Self::Asked { method, address, status, protocol, millis } => {
                vec![format!("{method} {address}  {status} {protocol} in {millis} ms")]
            }
            Self::Unanswered { method, address, reason } => {
                vec![format!("{method} {address}  no answer: {reason}")]
            }
            Self::Challenged { host, challenges } => {
                vec![format!("  {host} wants to know who we are: {}", challenges.join("; "))]
            }
            Self::Credential { host, kind } => vec![format!("  told {host}: {kind}")],
            Self::Token { server, outcome } => vec![format!("  token server {server}: {outcome}")],
            Self::Heads { method, address, sent, status, received } => {
                let mut lines = vec![format!("> {method} {address}")];
                lines.extend(sent.iter().map(|(name, value)| format!("> {name}: {value}")));
                if let Some(status) = status {
                    lines.push(format!("< {status}"));
                }
                lines.extend(received.iter().map(|(name, value)| format!("< {name}: {value}")));
                lines
            }
            Self::Skipped { host, reason } => vec![format!("  {host} passed over: {reason}")],
        }
    }
}

/// Headers whose values are shown. Any other may hold a secret, those of configured hosts above
/// all.
const SHOWN_HEADERS: [&str; 22] = [
    "accept",
    "accept-encoding",
    "accept-ranges",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "docker-content-digest",
    "docker-distribution-api-version",
    "docker-upload-uuid",
    "etag",
    "if-range",
    "oci-subject",
    "range",
    "retry-after",
    "server",
    "user-agent",
    "vary",
    "www-authenticate",
];

/// Headers without what may be secret in them.
pub(crate) fn shown_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let show = |(name, value): (&HeaderName, &HeaderValue)| {
        let text = value.to_str().unwrap_or("<not text>");
        let text = match name.as_str() {
            plain if SHOWN_HEADERS.contains(&plain) => text.to_owned(),
            // Addresses may be signed.
            "location" => text.split('?').next().unwrap_or_default().to_owned(),
            "authorization" => {
                format!("{} <hidden>", text.split_once(' ').map_or("", |(kind, _)| kind))
            }
            _ => "<hidden>".to_owned(),
        };
        (name.to_string(), text)
    };
    headers.iter().map(show).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_header_tells_a_secret() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer s3cret"),
            ("x-token", "s3cret"),
            ("set-cookie", "id=s3cret"),
            ("location", "https://cdn/blob?signature=s3cret"),
            ("etag", "\"1\""),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let shown = shown_headers(&headers);
        let text = format!("{shown:?}");
        assert!(!text.contains("s3cret"), "{text}");
        let of = |name: &str| shown.iter().find(|(n, _)| n == name).unwrap().1.as_str();
        assert_eq!(of("authorization"), "Bearer <hidden>");
        assert_eq!(of("location"), "https://cdn/blob");
        assert_eq!(of("etag"), "\"1\"");
    }
}
