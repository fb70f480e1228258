//! From a name to a descriptor, and manifests.

use bytes::Bytes;
use futures_util::FutureExt;
use gantry_core::image::MANIFEST_SIZE_MAX;
use gantry_core::{Algorithm, Descriptor, Digest, Digester, media_types};
use gantry_errdefs::{Class, Error, Result};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;

use crate::auth::{Scope, read_limited};
use crate::failure::Failure;
use crate::hosts::Host;
use crate::repository::Repository;
use crate::schema1::is_known;
use crate::transport::Request;

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

/// Every document we can read, then anything: artifacts are fetched too.
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest or index.
    pub descriptor: Descriptor,
    /// Its bytes, when they had to be fetched to know the descriptor; digest checked.
    pub bytes: Option<Bytes>,
    /// The host that answered, `scheme://authority`.
    pub host: String,
}

impl Repository {
    /// Resolves the repository's own reference: its digest if it has one, else its tag.
    ///
    /// # Errors
    /// InvalidArgument for a reference without tag and digest, and for schema 1 manifests;
    /// otherwise the class of the last host's failure, with every host and its reason.
    pub async fn resolve(&self) -> Result<Resolved> {
        let resolved = self.resolve_any().await?;
        refuse_schema1(&resolved.descriptor, &self.reference().to_string())?;
        Ok(resolved)
    }

    /// As [`Repository::resolve`], whatever kind of manifest it is.
    pub(crate) async fn resolve_any(&self) -> Result<Resolved> {
        let reference = self.reference();
        let object = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => {
                return Err(Error::invalid_argument(format!(
                    "reference \"{reference}\": object required, a tag or a digest"
                )));
            }
        };
        let want = reference.digest().cloned();
        let capable: fn(&crate::Capabilities) -> bool =
            if want.is_some() { |c| c.pull } else { |c| c.resolve };
        let (object, want) = (&object, want.as_ref());
        self.walk(&format!("resolving {object:?}"), capable, |host| {
            self.resolve_on(host, object.clone(), want.cloned()).boxed()
        })
        .await
    }

    /// Fetches a manifest, index or other small document by digest, checked against digest and
    /// size.
    ///
    /// # Errors
    /// ResourceExhausted above [`MANIFEST_SIZE_MAX`]; otherwise as for [`Repository::resolve`].
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let digest = &descriptor.digest;
        if u64::try_from(descriptor.size).is_ok_and(|size| size > MANIFEST_SIZE_MAX) {
            return Err(Error::resource_exhausted(format!(
                "manifest {digest}: {} bytes, more than {MANIFEST_SIZE_MAX}",
                descriptor.size
            )));
        }
        self.walk(
            &format!("fetching manifest {digest}"),
            |c| c.pull,
            |host| {
                let (object, want) = (descriptor.digest.to_string(), descriptor.clone());
                async move {
                    let (got, bytes) = self.get_manifest(host, &object, Some(&want.digest)).await?;
                    if want.size > 0 && got.size != want.size {
                        return Err(Failure::lasting(
                            Class::DataLoss,
                            format!("sent {} bytes of {}", got.size, want.size),
                        ));
                    }
                    Ok(bytes)
                }
                .boxed()
            },
        )
        .await
    }

    async fn resolve_on(
        &self,
        host: &Host,
        object: String,
        want: Option<Digest>,
    ) -> Result<Resolved, Failure> {
        let scope = Scope::pull(self.reference().path());
        let url = self.url(host, &format!("manifests/{object}"))?;
        let request = Request::new(Method::HEAD, url, &scope)
            .header(ACCEPT, HeaderValue::from_static(ACCEPT_MANIFESTS));
        let response = self.send(host, &request).await?;
        let status = response.status().as_u16();
        if response.status().is_success() {
            if let Some(descriptor) = descriptor_of(response.headers()) {
                if want.is_some_and(|want| want != descriptor.digest) {
                    return Err(wrong_digest(&descriptor.digest));
                }
                return Ok(Resolved { descriptor, bytes: None, host: host.origin() });
            }
        } else if !matches!(status, 400 | 405 | 406 | 501) {
            return Err(Failure::of_response(response).await);
        }
        // The host cannot answer HEAD, or not fully: look at the document itself.
        let (descriptor, bytes) = self.get_manifest(host, &object, want.as_ref()).await?;
        Ok(Resolved { descriptor, bytes: Some(bytes), host: host.origin() })
    }

    async fn get_manifest(
        &self,
        host: &Host,
        object: &str,
        want: Option<&Digest>,
    ) -> Result<(Descriptor, Bytes), Failure> {
        let scope = Scope::pull(self.reference().path());
        let url = self.url(host, &format!("manifests/{object}"))?;
        let request = Request::new(Method::GET, url, &scope)
            .header(ACCEPT, HeaderValue::from_static(ACCEPT_MANIFESTS));
        let response = self.send(host, &request).await?;
        if !response.status().is_success() {
            return Err(Failure::of_response(response).await);
        }
        let headers = response.headers().clone();
        let limit = usize::try_from(MANIFEST_SIZE_MAX).unwrap_or(usize::MAX);
        let bytes = Bytes::from(read_limited(response, limit).await?);
        let told = digest_header(&headers);
        let algorithm = want.or(told.as_ref()).map_or(Algorithm::Sha256, Digest::algorithm);
        let mut digester = Digester::new(algorithm);
        digester.update(&bytes);
        let digest = digester.finish();
        let media_type = media_type(&headers, &bytes);
        // A schema 1 digest leaves the signatures out; those are refused by name later.
        let is_schema1 = media_type.starts_with(SCHEMA1_PREFIX);
        if !is_schema1 && want.or(told.as_ref()).is_some_and(|want| *want != digest) {
            return Err(wrong_digest(&digest));
        }
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        Ok((Descriptor::new(media_type, digest, size), bytes))
    }
}

/// Both media types of schema 1 begin so.
pub(crate) const SCHEMA1_PREFIX: &str = "application/vnd.docker.distribution.manifest.v1+";

fn refuse_schema1(descriptor: &Descriptor, name: &str) -> Result<()> {
    if descriptor.media_type.starts_with(SCHEMA1_PREFIX) {
        return Err(Error::invalid_argument(format!(
            "image {name:?}: schema 1 image manifests are no longer supported"
        )));
    }
    Ok(())
}

fn wrong_digest(got: &Digest) -> Failure {
    Failure::lasting(Class::DataLoss, format!("sent a document with the wrong digest {got}"))
}

fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST_HEADER)?.to_str().ok()?.trim().parse().ok()
}

/// The descriptor that response headers give, if they give all of it.
fn descriptor_of(headers: &HeaderMap) -> Option<Descriptor> {
    let size: i64 = headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()?;
    let media_type = content_type(headers)?;
    (is_known(&media_type) && size > 0).then_some(())?;
    Some(Descriptor::new(media_type, digest_header(headers)?, size))
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let full = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let media_type = full.split(';').next()?.trim().to_ascii_lowercase();
    (!media_type.is_empty()).then_some(media_type)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sniffed {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

/// The media type: the header's if it is one of ours, else what the document says, else what it
/// looks like.
fn media_type(headers: &HeaderMap, bytes: &[u8]) -> String {
    let told = content_type(headers).unwrap_or_default();
    if is_known(&told) {
        return told;
    }
    match serde_json::from_slice::<Sniffed>(bytes) {
        Ok(Sniffed { media_type: Some(media_type), .. }) => media_type,
        Ok(Sniffed { manifests: Some(_), .. }) => media_types::OCI_INDEX.to_owned(),
        Ok(Sniffed { layers: Some(_), .. }) => media_types::OCI_MANIFEST.to_owned(),
        _ => told,
    }
}
