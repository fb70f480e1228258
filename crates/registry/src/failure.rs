//! Why one host could not do what was asked, and what follows from it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use gantry_errdefs::{Class, Error};
use http::StatusCode;
use http::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;

use crate::limits::ERROR_BODY_MAX;

/// One host's failure.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What it means to the caller if no other host helps.
    pub(crate) class: Class,
    /// For people: what happened, without the host's name.
    pub(crate) reason: String,
    /// Whether the same request may succeed a little later.
    pub(crate) transient: bool,
    /// When the host asked to be tried again.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that will not pass by itself.
    pub(crate) fn lasting(class: Class, reason: impl Into<String>) -> Self {
        Self { class, reason: reason.into(), transient: false, retry_after: None }
    }

    /// A failure that may pass.
    pub(crate) fn passing(reason: impl Into<String>) -> Self {
        Self {
            class: Class::Unavailable,
            reason: reason.into(),
            transient: true,
            retry_after: None,
        }
    }

    /// From a request that got no response, or whose body broke.
    pub(crate) fn of_request(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut certificate = false;
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                let _ = write!(reason, ": {text}");
            }
            certificate |= is_tls(cause);
            source = cause.source();
        }
        if certificate {
            return Self::lasting(Class::Unavailable, format!("TLS: {reason}"));
        }
        if error.is_builder() {
            return Self::lasting(Class::InvalidArgument, reason);
        }
        Self::passing(reason)
    }

    /// From a response whose status is no success; reads the beginning of its body.
    pub(crate) async fn of_response(mut response: reqwest::Response) -> Self {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let mut body = Vec::new();
        while body.len() < ERROR_BODY_MAX {
            let patience = Duration::from_secs(2);
            match tokio::time::timeout(patience, response.chunk()).await {
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                _ => break,
            }
        }
        body.truncate(ERROR_BODY_MAX);
        let mut reason = status.to_string();
        if let Some(detail) = detail(&body) {
            let _ = write!(reason, ": {detail}");
        }
        let transient = matches!(
            status.as_u16(),
            408 | 425 | 429 | 500 | 502 | 503 | 504 | 507..=511 | 520..=530
        );
        Self { class: class_of(status), reason, transient, retry_after }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::lasting(error.class(), error.message())
    }
}

/// Whether an error is TLS's own; it comes wrapped in one I/O error or several.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    if error.is::<rustls::Error>() {
        return true;
    }
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_tls(inner))
}

fn class_of(status: StatusCode) -> Class {
    match status.as_u16() {
        400 | 405 | 411 | 413 | 414 | 415 | 422 => Class::InvalidArgument,
        401 => Class::Unauthenticated,
        403 => Class::PermissionDenied,
        404 | 410 => Class::NotFound,
        408 | 425 | 500..=599 => Class::Unavailable,
        409 | 412 => Class::FailedPrecondition,
        416 => Class::OutOfRange,
        429 => Class::ResourceExhausted,
        _ => Class::Unknown,
    }
}

/// `Retry-After` as seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let when = gantry_core::timestamp::parse_http_date(text)?;
    Some(when.duration_since(SystemTime::now()).unwrap_or_default())
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What an error body says: the distribution spec's error list, or the first line of plain text.
fn detail(body: &[u8]) -> Option<String> {
    if let Ok(list) = serde_json::from_slice::<Errors>(body) {
        let each = list.errors.iter().map(|e| format!("{}: {}", e.code, e.message));
        return Some(each.collect::<Vec<_>>().join("; ")).filter(|s| !s.is_empty());
    }
    let line = std::str::from_utf8(body).ok()?.lines().next()?.trim();
    let shown = !line.is_empty() && !line.starts_with('<') && !line.starts_with('{');
    shown.then(|| line.chars().take(200).collect())
}
