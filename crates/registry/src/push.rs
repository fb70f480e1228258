//! Pushing blobs and manifests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::{Class, Error, Result};
use http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use url::Url;

use crate::auth::Scope;
use crate::failure::Failure;
use crate::hosts::Host;
use crate::limits::{
    BACKOFF_FIRST, BACKOFF_MAX, MISSES_MIN, MONOLITHIC_PUSH_MAX, PUSH_CHUNK, PUSH_READ,
    RESUMES_WITHOUT_PROGRESS_MAX, UNASKED_PUSH_MAX,
};
use crate::repository::Repository;
use crate::transport::Request;

/// Bytes to push, readable at any offset, since uploads are repeated and resumed.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// Reads up to `len` bytes at `offset`; empty only at the end.
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes>;
}

#[async_trait]
impl BlobSource for Bytes {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let end = start.saturating_add(len).min(self.len());
        Ok(self.slice(start..end))
    }
}

/// How content came to be on the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was taken over from another repository of the same registry.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// Called with the number of bytes that the registry has so far.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(u64) + Send + Sync);

impl Repository {
    /// Pushes a blob, unless it is there; a small one is not asked for once the repository has had
    /// none of several. `mount_from` lists repositories (paths) of the same registry that have it.
    /// `progress` is called with the bytes that arrived so far.
    ///
    /// # Errors
    /// NotFound when no host may be pushed to; DataLoss when the registry got other bytes;
    /// otherwise the class of the failure, with host and reason.
    pub async fn push_blob(
        &self,
        descriptor: &Descriptor,
        source: Arc<dyn BlobSource>,
        mount_from: &[String],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed> {
        let size = u64::try_from(descriptor.size).map_err(|_| {
            Error::invalid_argument(format!("blob {}: negative size", descriptor.digest))
        })?;
        let push =
            BlobPush { repository: self, digest: &descriptor.digest, size, source, progress };
        let push = &push;
        let what = format!("pushing {}", descriptor.digest);
        let pushed =
            self.walk(&what, |c| c.push, |host| push.run(host, mount_from).boxed()).await?;
        progress(size);
        Ok(pushed)
    }

    /// Pushes a manifest or index under its digest, or under `tag`.
    ///
    /// # Errors
    /// As for [`Repository::push_blob`].
    pub async fn push_manifest(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        tag: Option<&str>,
    ) -> Result<Pushed> {
        let bytes = &bytes;
        self.walk(
            &format!("pushing manifest {}", descriptor.digest),
            |c| c.push,
            |host| self.put_manifest(host, descriptor, bytes.clone(), tag).boxed(),
        )
        .await
    }

    async fn put_manifest(
        &self,
        host: &Host,
        descriptor: &Descriptor,
        bytes: Bytes,
        tag: Option<&str>,
    ) -> Result<Pushed, Failure> {
        let scope = Scope::push(self.reference().path());
        let object = tag.map_or_else(|| descriptor.digest.to_string(), str::to_owned);
        let rest = format!("manifests/{object}");
        if self.has(host, &scope, &rest, &descriptor.digest).await? {
            return Ok(Pushed::Existed);
        }
        let content_type = HeaderValue::try_from(descriptor.media_type.as_str()).map_err(|_| {
            let why = format!("media type {:?} is no header", descriptor.media_type);
            Failure::lasting(Class::InvalidArgument, why)
        })?;
        let body = move || reqwest::Body::from(bytes.clone());
        let len = u64::try_from(descriptor.size).unwrap_or_default();
        let request = Request::new(Method::PUT, self.url(host, &rest)?, &scope)
            .header(CONTENT_TYPE, content_type)
            .body(&body, len);
        let response = self.send(host, &request).await?;
        if !response.status().is_success() {
            return Err(Failure::of_response(response).await);
        }
        check_digest(&response, &descriptor.digest)?;
        Ok(Pushed::Uploaded)
    }

    /// Whether `rest` is on the host and is `digest`.
    async fn has(
        &self,
        host: &Host,
        scope: &Scope,
        rest: &str,
        digest: &Digest,
    ) -> Result<bool, Failure> {
        let accept = HeaderValue::from_static("*/*");
        let mut request = Request::new(Method::HEAD, self.url(host, rest)?, scope);
        for media_type in [
            media_types::OCI_INDEX,
            media_types::OCI_MANIFEST,
            media_types::DOCKER_LIST,
            media_types::DOCKER_MANIFEST,
        ] {
            request = request.header(http::header::ACCEPT, HeaderValue::from_static(media_type));
        }
        let request = request.header(http::header::ACCEPT, accept);
        let response = self.send(host, &request).await?;
        match response.status() {
            s if s.is_success() => {
                // A tag may stand for another document; a digest in the address cannot.
                Ok(rest.ends_with(digest.as_str())
                    || told_digest(&response).as_ref() == Some(digest))
            }
            StatusCode::NOT_FOUND => Ok(false),
            StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(Failure::of_response(response).await),
        }
    }
}

/// One blob on its way to one registry.
struct BlobPush<'a> {
    repository: &'a Repository,
    digest: &'a Digest,
    size: u64,
    source: Arc<dyn BlobSource>,
    progress: OnProgress<'a>,
}

impl BlobPush<'_> {
    async fn run(&self, host: &Host, mount_from: &[String]) -> Result<Pushed, Failure> {
        let path = self.repository.reference().path();
        let scope = Scope::push(path);
        let rest = format!("blobs/{}", self.digest);
        let misses = self.repository.misses();
        let asks = self.size > UNASKED_PUSH_MAX || misses.load(Ordering::Relaxed) < MISSES_MIN;
        if asks {
            if self.repository.has(host, &scope, &rest, self.digest).await? {
                misses.store(0, Ordering::Relaxed);
                return Ok(Pushed::Existed);
            }
            misses.fetch_add(1, Ordering::Relaxed);
        }
        for from in mount_from.iter().filter(|from| from.as_str() != path) {
            if let Some(outcome) = self.mount(host, from).await? {
                return Ok(outcome);
            }
        }
        let session = self.start(host, &scope).await?;
        self.upload(host, &scope, session).await?;
        Ok(Pushed::Uploaded)
    }

    /// Asks for the blob of another repository. When the registry opens an upload instead, that
    /// one is left to expire unless it can be used; None then.
    async fn mount(&self, host: &Host, from: &str) -> Result<Option<Pushed>, Failure> {
        let scope = Scope::push(self.repository.reference().path()).and_pull(from);
        let mut url = self.repository.url(host, "blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", self.digest.as_str()).append_pair("from", from);
        let empty = reqwest::Body::default;
        let request = Request::new(Method::POST, url, &scope).body(&empty, 0);
        let response = self.repository.send(host, &request).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Some(Pushed::Mounted)),
            StatusCode::ACCEPTED => {
                let session = location(&response)?;
                self.upload(host, &scope, session).await.map(|()| Some(Pushed::Uploaded))
            }
            _ => Ok(None),
        }
    }

    async fn start(&self, host: &Host, scope: &Scope) -> Result<Url, Failure> {
        let url = self.repository.url(host, "blobs/uploads/")?;
        let empty = reqwest::Body::default;
        let request = Request::new(Method::POST, url, scope).body(&empty, 0);
        let response = self.repository.send(host, &request).await?;
        if response.status() != StatusCode::ACCEPTED && response.status() != StatusCode::OK {
            return Err(Failure::of_response(response).await);
        }
        location(&response)
    }

    async fn upload(&self, host: &Host, scope: &Scope, session: Url) -> Result<(), Failure> {
        if self.size <= MONOLITHIC_PUSH_MAX {
            return self.finish(host, scope, session, 0, self.size).await;
        }
        let mut session = session;
        let mut sent = 0;
        let mut failures = 0;
        while sent < self.size {
            match self.chunk(host, scope, &session, sent).await {
                Ok((next, have)) => {
                    session = next;
                    failures = 0;
                    sent = have;
                    (self.progress)(sent);
                }
                Err(failure) => {
                    failures += 1;
                    let may_pass = failure.transient || failure.class == Class::OutOfRange;
                    if !may_pass || failures > RESUMES_WITHOUT_PROGRESS_MAX {
                        return Err(failure);
                    }
                    tracing::debug!(digest = %self.digest, host = host.origin(), sent,
                        reason = failure.reason, "upload broke: resuming");
                    let pause = BACKOFF_FIRST * 2u32.saturating_pow(failures - 1);
                    tokio::time::sleep(pause.min(BACKOFF_MAX)).await;
                    (session, sent) = self.status(host, scope, session).await?;
                }
            }
        }
        self.finish(host, scope, session, self.size, 0).await
    }

    /// Sends one chunk from `start`; returns where to go on and how much the registry has.
    async fn chunk(
        &self,
        host: &Host,
        scope: &Scope,
        session: &Url,
        start: u64,
    ) -> Result<(Url, u64), Failure> {
        let len = PUSH_CHUNK.min(self.size - start);
        let end = start + len;
        let body = || self.body(start, len);
        let range = HeaderValue::try_from(format!("{start}-{}", end - 1))
            .map_err(|e| Failure::lasting(Class::Internal, e.to_string()))?;
        let request = Request::new(Method::PATCH, session.clone(), scope)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .header(CONTENT_RANGE, range)
            .body(&body, len);
        let response = self.repository.send(host, &request).await?;
        if !response.status().is_success() {
            return Err(Failure::of_response(response).await);
        }
        let have = stored(&response).unwrap_or(end);
        if have > self.size || have <= start {
            return Err(Failure::lasting(
                Class::Unknown,
                format!("says it has {have} bytes after bytes {start} to {end} were sent"),
            ));
        }
        Ok((location(&response).unwrap_or_else(|_| session.clone()), have))
    }

    /// Asks how much of the upload the registry has; a lost upload starts over.
    async fn status(
        &self,
        host: &Host,
        scope: &Scope,
        session: Url,
    ) -> Result<(Url, u64), Failure> {
        let request = Request::new(Method::GET, session.clone(), scope);
        let response = self.repository.send(host, &request).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok((self.start(host, scope).await?, 0)),
            s if s.is_success() => {
                let have = stored(&response).unwrap_or(0).min(self.size);
                Ok((location(&response).unwrap_or(session), have))
            }
            _ => Err(Failure::of_response(response).await),
        }
    }

    /// Ends the upload, sending the last `len` bytes from `start` with it.
    async fn finish(
        &self,
        host: &Host,
        scope: &Scope,
        mut session: Url,
        start: u64,
        len: u64,
    ) -> Result<(), Failure> {
        session.query_pairs_mut().append_pair("digest", self.digest.as_str());
        let body = || self.body(start, len);
        let request = Request::new(Method::PUT, session, scope)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .body(&body, len);
        let response = self.repository.send(host, &request).await?;
        if !response.status().is_success() {
            return Err(Failure::of_response(response).await);
        }
        check_digest(&response, self.digest)
    }

    /// A body of `len` bytes of the blob from `start` on.
    fn body(&self, start: u64, len: u64) -> reqwest::Body {
        if len == 0 {
            return reqwest::Body::default();
        }
        let source = self.source.clone();
        let stream = futures_util::stream::try_unfold((source, start, len), |state| async move {
            let (source, at, left) = state;
            if left == 0 {
                return Ok(None);
            }
            let want = usize::try_from(left).unwrap_or(PUSH_READ).min(PUSH_READ);
            let bytes = source.read_at(at, want).await?;
            if bytes.is_empty() {
                return Err(Error::data_loss(format!("content to push ends {left} bytes early")));
            }
            let read = bytes.len() as u64;
            Ok(Some((bytes, (source, at + read, left.saturating_sub(read)))))
        });
        reqwest::Body::wrap_stream(stream)
    }
}

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

fn told_digest(response: &reqwest::Response) -> Option<Digest> {
    response.headers().get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()
}

fn check_digest(response: &reqwest::Response, want: &Digest) -> Result<(), Failure> {
    match told_digest(response) {
        Some(got) if got != *want => {
            Err(Failure::lasting(Class::DataLoss, format!("stored {got} instead")))
        }
        _ => Ok(()),
    }
}

/// Where an upload goes on; registries give it absolute or relative.
fn location(response: &reqwest::Response) -> Result<Url, Failure> {
    let missing = || Failure::lasting(Class::Unknown, "opened an upload without a location");
    let text = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    response.url().join(text.ok_or_else(missing)?).map_err(|_| missing())
}

/// How many bytes an upload has, from `Range: 0-N`.
fn stored(response: &reqwest::Response) -> Option<u64> {
    let text = response.headers().get(RANGE)?.to_str().ok()?;
    let (_, last) = text.trim().trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    // `0-0` is what an empty upload says, for there is no way to write an empty range.
    Some(if last == 0 { 0 } else { last + 1 })
}
