//! Images of schema 1, for whoever converts them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::FutureExt;
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Class, Error, Result};
use http::Method;
use http::header::CONTENT_LENGTH;
use serde::Deserialize;

use crate::auth::Scope;
use crate::failure::Failure;
use crate::hosts::Host;
use crate::repository::Repository;
use crate::resolve::{Resolved, SCHEMA1_PREFIX};
use crate::transport::Request;

impl Resolved {
    /// Whether it is a manifest of schema 1.
    pub fn is_schema1(&self) -> bool {
        self.descriptor.media_type.starts_with(SCHEMA1_PREFIX)
    }
}

impl Repository {
    /// As [`Repository::resolve`], but for manifests of schema 1, which are taken and fetched: of
    /// one that was asked for by digest, what its signatures sign is checked.
    ///
    /// # Errors
    /// As [`Repository::resolve`]; DataLoss for another document than the digest names.
    pub async fn resolve_with_schema1(&self) -> Result<Resolved> {
        let mut resolved = self.resolve_any().await?;
        if !resolved.is_schema1() {
            return Ok(resolved);
        }
        if resolved.bytes.is_none() {
            // Its digest leaves the signatures out, and its size may.
            let fetched = Descriptor { size: 0, ..resolved.descriptor.clone() };
            resolved.bytes = Some(self.manifest(&fetched).await?);
        }
        let wanted = self.reference().digest();
        if let (Some(wanted), Some(bytes)) = (wanted, &resolved.bytes)
            && signed(bytes).as_ref().map(|part| Digest::of(part)) != Some(wanted.clone())
        {
            let why = format!("image \"{}\": the registry sent another", self.reference());
            return Err(Error::data_loss(why));
        }
        Ok(resolved)
    }

    /// The size of a blob, in bytes, for whoever knows its digest only.
    ///
    /// # Errors
    /// The class of the last host's failure, with every host and its reason.
    pub async fn blob_size(&self, digest: &Digest) -> Result<i64> {
        self.walk(
            &format!("looking at {digest}"),
            |c| c.pull,
            |host| self.blob_size_on(host, digest).boxed(),
        )
        .await
    }

    async fn blob_size_on(&self, host: &Host, digest: &Digest) -> Result<i64, Failure> {
        let scope = Scope::pull(self.reference().path());
        let url = self.url(host, &format!("blobs/{digest}"))?;
        let response = self.send(host, &Request::new(Method::HEAD, url, &scope)).await?;
        if !response.status().is_success() {
            return Err(Failure::of_response(response).await);
        }
        let told = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        told.and_then(|size| size.trim().parse().ok())
            .ok_or_else(|| Failure::lasting(Class::Unknown, "it does not tell the size"))
    }
}

#[derive(Deserialize)]
struct Signed {
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    protected: String,
}

/// Where the document ended before it was signed, and how.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protected {
    format_length: usize,
    format_tail: String,
}

/// The part of a manifest that its signatures sign, and its digest is of; all of one without.
fn signed(bytes: &Bytes) -> Option<Vec<u8>> {
    let Ok(Signed { signatures }) = serde_json::from_slice(bytes) else {
        return Some(bytes.to_vec());
    };
    let protected = URL_SAFE_NO_PAD.decode(&signatures.first()?.protected).ok()?;
    let protected: Protected = serde_json::from_slice(&protected).ok()?;
    let mut out = bytes.get(..protected.format_length)?.to_vec();
    out.extend(URL_SAFE_NO_PAD.decode(&protected.format_tail).ok()?);
    Some(out)
}

/// Whether `media_type` is a document that is told by name and need not be looked at.
pub(crate) fn is_known(media_type: &str) -> bool {
    media_types::is_document(media_type) || media_type.starts_with(SCHEMA1_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_part_is_found() {
        let payload = "{\n   \"a\": 1\n}";
        let cut = payload.len() - 2;
        let tail = URL_SAFE_NO_PAD.encode(&payload[cut..]);
        let protected = format!(r#"{{"formatLength":{cut},"formatTail":"{tail}"}}"#);
        let protected = URL_SAFE_NO_PAD.encode(protected);
        let head = &payload[..cut];
        let whole = format!("{head},\n \"signatures\": [{{\"protected\":\"{protected}\"}}]\n}}");
        let signed = super::signed(&Bytes::from(whole)).unwrap();
        assert_eq!(signed, payload.as_bytes());
        assert_eq!(super::signed(&Bytes::from_static(b"{}")).unwrap(), b"{}");
        let wrong = br#"{"signatures":[{"protected":"e30"}]}"#;
        assert_eq!(super::signed(&Bytes::from_static(wrong)), None);
    }
}
