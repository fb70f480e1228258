//! What refers to an image: signatures, attestations, bills of materials.

use futures_util::FutureExt;
use gantry_core::image::{Index, MANIFEST_SIZE_MAX};
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Class, Result};
use http::header::{ACCEPT, LINK};
use http::{HeaderName, HeaderValue, Method};
use url::Url;

use crate::auth::{Scope, read_limited};
use crate::failure::Failure;
use crate::hosts::Host;
use crate::limits::{REFERRER_PAGES_MAX, REFERRERS_MAX};
use crate::repository::Repository;
use crate::transport::Request;

/// Says that the host has chosen by artifact type.
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

impl Repository {
    /// The manifests whose subject is `subject`, of one artifact type if it is given. Registries
    /// without the referrers API keep them in an index under a tag made of the digest; there they
    /// are found as well.
    ///
    /// # Errors
    /// ResourceExhausted for more than [`REFERRERS_MAX`]; otherwise the class of the last host's
    /// failure. Nothing that refers to the subject is no error.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let found = self
            .walk(
                &format!("listing referrers of {subject}"),
                |c| c.referrers,
                |host| {
                    let (subject, wanted) = (subject.clone(), artifact_type.map(str::to_owned));
                    async move { self.referrers_on(host, &subject, wanted.as_deref()).await }
                        .boxed()
                },
            )
            .await;
        match found {
            // Neither the API nor the tag.
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            found => found,
        }
    }

    async fn referrers_on(
        &self,
        host: &Host,
        subject: &Digest,
        wanted: Option<&str>,
    ) -> Result<Vec<Descriptor>, Failure> {
        let mut next = self.url(host, &format!("referrers/{subject}"))?;
        if let Some(wanted) = wanted {
            next.query_pairs_mut().append_pair("artifactType", wanted);
        }
        let mut found = Vec::new();
        for page in 0..REFERRER_PAGES_MAX {
            let (descriptors, after) = match self.referrers_page(host, next.clone()).await {
                Err(failure) if page == 0 && is_unknown(&failure) => {
                    let tag =
                        format!("manifests/{}-{}", subject.algorithm().as_str(), subject.hex());
                    (self.referrers_page(host, self.url(host, &tag)?).await?.0, None)
                }
                other => other?,
            };
            found.extend(descriptors);
            if found.len() > REFERRERS_MAX {
                break;
            }
            match after {
                Some(after) => next = after,
                None => {
                    found.retain(|d: &Descriptor| wanted.is_none_or(|w| artifact_type(d) == w));
                    return Ok(found);
                }
            }
        }
        let why = format!("more than {REFERRERS_MAX} referrers, or {REFERRER_PAGES_MAX} pages");
        Err(Failure::lasting(Class::ResourceExhausted, why))
    }

    /// One page, and the address of the next.
    async fn referrers_page(
        &self,
        host: &Host,
        url: Url,
    ) -> Result<(Vec<Descriptor>, Option<Url>), Failure> {
        let scope = Scope::pull(self.reference().path());
        let request = Request::new(Method::GET, url.clone(), &scope)
            .header(ACCEPT, HeaderValue::from_static(media_types::OCI_INDEX));
        let response = self.send(host, &request).await?;
        if !response.status().is_success() {
            return Err(Failure::of_response(response).await);
        }
        let filters = response.headers().get(FILTERS_APPLIED);
        tracing::trace!(?filters, "referrers");
        let after =
            response.headers().get(LINK).and_then(|link| next_of(&url, link.to_str().ok()?));
        let limit = usize::try_from(MANIFEST_SIZE_MAX).unwrap_or(usize::MAX);
        let bytes = read_limited(response, limit).await?;
        // Old registries show their page for people where they do not know an address.
        let index = Index::parse(&Digest::of(&bytes), &bytes)
            .map_err(|e| Failure::lasting(Class::NotFound, format!("no index: {}", e.message())))?;
        Ok((index.manifests, after))
    }
}

/// The artifact type of a descriptor, by which signatures are told from bills of materials.
fn artifact_type(descriptor: &Descriptor) -> &str {
    descriptor.artifact_type.as_deref().unwrap_or_default()
}

/// Whether the host does not know the referrers API, or nothing of the subject.
fn is_unknown(failure: &Failure) -> bool {
    matches!(failure.class, Class::NotFound | Class::InvalidArgument)
}

/// The address of the next page: `<address>; rel="next"`, of the same host.
fn next_of(url: &Url, link: &str) -> Option<Url> {
    let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("rel=\"next\"").then_some(())?;
    url.join(address).ok().filter(|next| next.origin() == url.origin())
}
