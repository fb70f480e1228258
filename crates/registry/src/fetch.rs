//! Blobs as streams that survive broken connections.

pub(crate) mod ranges;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use gantry_core::{Descriptor, media_types};
use gantry_errdefs::{Class, Error, Result};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap,
    IF_RANGE, RANGE,
};
use http::{HeaderValue, Method};
use url::Url;

use crate::auth::Scope;
use crate::failure::Failure;
use crate::hosts::Host;
use crate::limits::{
    BACKOFF_FIRST, BACKOFF_MAX, FOREIGN_URLS_MAX, RESUMES_WITHOUT_PROGRESS_MAX, STALL_BYTES_MIN,
    STALL_WINDOW,
};
use crate::repository::Repository;
use crate::transport::Request;
use ranges::{Ahead, Origin, Position};

impl Repository {
    /// Opens the content of `descriptor` from byte `offset` on. The stream reconnects by itself
    /// where the connection breaks, and reads big blobs over several connections where that is
    /// faster; it checks the size but not the digest, which whoever stores
    /// the bytes computes anyway.
    ///
    /// # Errors
    /// OutOfRange for an offset past the size; otherwise the class of the last host's failure,
    /// with every host and its reason.
    pub async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let digest = &descriptor.digest;
        let size = u64::try_from(descriptor.size).map_err(|_| {
            Error::invalid_argument(format!("blob {digest}: negative size {}", descriptor.size))
        })?;
        if offset > size {
            return Err(Error::out_of_range(format!(
                "blob {digest}: offset {offset} is past its {size} bytes"
            )));
        }
        let mut stream = BlobStream {
            repository: self.clone(),
            descriptor: descriptor.clone(),
            size,
            position: offset,
            open: None,
            ahead: Ahead::new(size - offset, self.ahead_budget()),
            last: None,
            resumes: 0,
        };
        if offset < size {
            stream.connect().await?;
        }
        Ok(stream)
    }
}

/// The content of a blob, in order, from one byte on.
#[derive(Debug)]
pub struct BlobStream {
    repository: Repository,
    descriptor: Descriptor,
    size: u64,
    /// Offset of the next byte that [`BlobStream::next`] returns.
    position: u64,
    open: Option<Open>,
    /// What is fetched beside it; begins where `open` is to end, or at `position` without one.
    ahead: Ahead,
    /// Who sent the last bytes, to ask the same one to go on.
    last: Option<Source>,
    /// Reconnections since the last byte arrived.
    resumes: u32,
}

/// A response whose body is being read.
#[derive(Debug)]
struct Open {
    response: reqwest::Response,
    /// Bytes to drop because the host sent the blob from its beginning.
    discard: u64,
    meter: Meter,
    source: Source,
    /// Where parts go on instead of it; None reads to the end of the blob.
    end: Option<u64>,
}

#[derive(Clone, Debug)]
struct Source {
    origin: String,
    /// A strong entity tag, if the host sent one.
    etag: Option<HeaderValue>,
    /// Where parts can be had; None when the host does not say that it sends any.
    parts: Option<Origin>,
}

impl BlobStream {
    /// Size of the whole blob, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Offset of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next piece of the blob; None after exactly [`BlobStream::size`] bytes. Cancelling the
    /// call loses nothing: the next one goes on where the last piece ended.
    ///
    /// # Errors
    /// Unavailable when the connection keeps breaking or stalls without progress; otherwise as
    /// for [`Repository::fetch`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.position >= self.size {
                self.open = None;
                return Ok(None);
            }
            let started = Instant::now();
            let next = match &mut self.open {
                Some(open) => open.next(self.position).await,
                None => match self.ahead.next(self.position).await {
                    Some(Err(failure)) => {
                        tracing::debug!(digest = %self.descriptor.digest, reason = failure.reason,
                            "parts of a blob failed: going on in one piece");
                        self.ahead.give_up();
                        continue;
                    }
                    Some(Ok(chunk)) => Ok(Some(chunk)),
                    None => {
                        self.connect().await?;
                        continue;
                    }
                },
            };
            let broken = match next {
                Ok(Some(chunk)) if chunk.is_empty() => continue,
                Ok(Some(chunk)) => return self.accept(chunk, started.elapsed()).map(Some),
                Ok(None) => Failure::passing("the connection ended early"),
                Err(failure) => failure,
            };
            self.give_up_or_pause(broken).await?;
        }
    }

    fn accept(&mut self, chunk: Bytes, waited: Duration) -> Result<Bytes> {
        let end = self.position + chunk.len() as u64;
        if end > self.size {
            self.open = None;
            return Err(Error::data_loss(format!(
                "blob {} of {}: the host sent more than its {} bytes",
                self.descriptor.digest,
                self.repository.reference().locator(),
                self.size
            )));
        }
        self.position = end;
        self.resumes = 0;
        self.ahead.note(chunk.len() as u64, waited);
        self.extend();
        if self.open.as_ref().is_some_and(|open| open.end == Some(end)) {
            self.open = None;
        }
        Ok(chunk)
    }

    /// Has more parts fetched ahead, if that is worth it.
    fn extend(&mut self) {
        let source = self.open.as_ref().map(|open| &open.source).or(self.last.as_ref());
        let Some(origin) = source.and_then(|source| source.parts.as_ref()) else { return };
        let (position, size, is_open) = (self.position, self.size, self.open.is_some());
        let at = Position { position, size, is_open };
        let cut = self.ahead.extend(&self.repository, origin, at);
        if let (Some(open), Some(cut)) = (&mut self.open, cut) {
            open.end = Some(cut);
        }
    }

    async fn give_up_or_pause(&mut self, broken: Failure) -> Result<()> {
        self.ahead.clear();
        let from = self.open.take().map(|open| open.source);
        let host = from.as_ref().map(|s| s.origin.clone()).unwrap_or_default();
        self.last = from;
        self.resumes += 1;
        if self.resumes > RESUMES_WITHOUT_PROGRESS_MAX {
            return Err(Error::new(
                Class::Unavailable,
                format!(
                    "blob {} of {}: {host}: {} after {} of {} bytes",
                    self.descriptor.digest,
                    self.repository.reference().locator(),
                    broken.reason,
                    self.position,
                    self.size
                ),
            ));
        }
        tracing::debug!(digest = %self.descriptor.digest, host, reason = broken.reason,
            position = self.position, "blob stream broke: resuming");
        if self.resumes > 1 {
            let pause = BACKOFF_FIRST * 2u32.saturating_pow(self.resumes - 2);
            tokio::time::sleep(pause.min(BACKOFF_MAX)).await;
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<()> {
        let this = &*self;
        let what = format!("fetching {}", self.descriptor.digest);
        let open =
            self.repository.walk(&what, |c| c.pull, |host| this.open_on(host).boxed()).await?;
        self.last = Some(open.source.clone());
        self.open = Some(open);
        Ok(())
    }

    async fn open_on(&self, host: &Host) -> Result<Open, Failure> {
        let media_type = &self.descriptor.media_type;
        let digest = &self.descriptor.digest;
        if media_types::is_document(media_type) {
            match self.open_at(host, &format!("manifests/{digest}")).await {
                Err(f) if f.class == Class::NotFound => {}
                other => return other,
            }
        }
        let mut outcome = self.open_at(host, &format!("blobs/{digest}")).await;
        // Layers their makers do not let others distribute: the registry has only their address.
        for url in self.descriptor.urls.iter().take(FOREIGN_URLS_MAX) {
            if !outcome.as_ref().is_err_and(|f| f.class == Class::NotFound) {
                break;
            }
            let Ok(url) = Url::parse(url) else { continue };
            outcome = self.open_url(host, url).await;
        }
        outcome
    }

    async fn open_at(&self, host: &Host, rest: &str) -> Result<Open, Failure> {
        self.open_url(host, self.repository.url(host, rest)?).await
    }

    async fn open_url(&self, host: &Host, url: Url) -> Result<Open, Failure> {
        let scope = Scope::pull(self.repository.reference().path());
        let origin = url.origin().ascii_serialization();
        let mut request = Request::new(Method::GET, url, &scope)
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let accept = format!("{}, */*", self.descriptor.media_type);
        if let Ok(accept) = HeaderValue::try_from(accept) {
            request = request.header(ACCEPT, accept);
        }
        if self.position > 0 {
            let range = HeaderValue::try_from(format!("bytes={}-", self.position));
            request = request.header(
                RANGE,
                range
                    .map_err(|e| Failure::lasting(Class::Internal, format!("range header: {e}")))?,
            );
            let same = self.last.as_ref().filter(|last| last.origin == origin);
            if let Some(etag) = same.and_then(|last| last.etag.clone()) {
                request = request.header(IF_RANGE, etag);
            }
        }
        let address = request.url.clone();
        let response = self.repository.send(host, &request).await?;
        if !response.status().is_success() {
            return Err(Failure::of_response(response).await);
        }
        let discard = self.check(response.status().as_u16(), response.headers())?;
        let etag = strong_etag(response.headers());
        let in_parts = response.status().as_u16() == 206
            || response.headers().get(ACCEPT_RANGES).is_some_and(|r| r == "bytes");
        let parts =
            in_parts.then(|| Origin { host: host.clone(), url: address, etag: etag.clone() });
        let source = Source { origin, etag, parts };
        Ok(Open { response, discard, meter: Meter::default(), source, end: None })
    }

    /// Checks that the response is the blob and tells how many bytes to drop from it.
    fn check(&self, status: u16, headers: &HeaderMap) -> Result<u64, Failure> {
        let wrong = |why: String| Failure::lasting(Class::DataLoss, why);
        if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|e| *e != "identity") {
            return Err(wrong(format!("sent the blob in the encoding {encoding:?}")));
        }
        let length = headers.get(http::header::CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|l| l.to_str().ok()?.trim().parse().ok());
        let (start, total) = if status == 206 {
            content_range(headers)
                .ok_or_else(|| wrong("sent a part without saying which".to_owned()))?
        } else {
            (0, length)
        };
        if total.is_some_and(|total| total != self.size) {
            let total = total.unwrap_or_default();
            return Err(wrong(format!("has a blob of {total} bytes instead of {}", self.size)));
        }
        self.position
            .checked_sub(start)
            .ok_or_else(|| wrong(format!("sent bytes from {start} instead of {}", self.position)))
    }
}

impl Open {
    /// The next bytes, none of them past the end; empty when there is nothing of use in them.
    async fn next(&mut self, position: u64) -> Result<Option<Bytes>, Failure> {
        let Some(mut chunk) = self.meter.chunk(&mut self.response).await? else { return Ok(None) };
        let dropped = self.discard.min(chunk.len() as u64);
        self.discard -= dropped;
        let _ = chunk.split_to(usize::try_from(dropped).unwrap_or(usize::MAX));
        if let Some(end) = self.end {
            chunk.truncate(usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX));
        }
        Ok(Some(chunk))
    }
}

/// Start and total size of a part: `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

fn strong_etag(headers: &HeaderMap) -> Option<HeaderValue> {
    let etag = headers.get(ETAG)?;
    (!etag.as_bytes().starts_with(b"W/")).then(|| etag.clone())
}

/// Watches that a body brings bytes, not just signs of life.
#[derive(Debug, Default)]
struct Meter {
    /// Time spent waiting in the current window.
    waited: Duration,
    /// Bytes that came in it.
    bytes: u64,
}

impl Meter {
    async fn chunk(&mut self, response: &mut reqwest::Response) -> Result<Option<Bytes>, Failure> {
        let started = Instant::now();
        let left = STALL_WINDOW.saturating_sub(self.waited);
        let outcome = tokio::time::timeout(left, response.chunk()).await;
        self.waited += started.elapsed();
        match outcome {
            Ok(Ok(Some(chunk))) => {
                self.bytes += chunk.len() as u64;
                if self.bytes >= STALL_BYTES_MIN {
                    *self = Self::default();
                }
                Ok(Some(chunk))
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(e)) => Err(Failure::of_request(e)),
            Err(_) => {
                Err(Failure::passing(format!("stalled: {} bytes in {STALL_WINDOW:?}", self.bytes)))
            }
        }
    }
}
