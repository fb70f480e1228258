//! The list of containers, encoded while it is read.
//!
//! A host may have ten thousand containers, whose records are some megabytes. Made into wire
//! messages first and encoded then, they would be in memory several times; here each record is
//! encoded as soon as it is read, and dropped; without filters it is not even taken apart. What is
//! encoded goes to the connection as it is, without another copy.

mod answer;
mod stored;

use std::convert::Infallible;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use gantry_api::containerd::services::containers::v1 as wire;
use gantry_core::Context as CallContext;
use gantry_errdefs::{Error, Result};
use gantry_metadata::{Db, StoredContainer, StoredContainers};
use prost::Message as _;
use prost::encoding::encode_varint;
use tonic::body::Body;
use tonic::codec::{Codec as _, Streaming};
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use self::answer::{Answer, PREFIX_LEN, prefix};
use crate::{call, convert};

/// The one method that is not left to the generated service.
const LIST: &str = "/containerd.services.containers.v1.Containers/List";

/// Field `containers` of the answer, as its key on the wire.
const CONTAINERS_KEY: u8 = 1 << 3 | 2;

/// Encoded records are kept in pieces of about this many bytes, so that no buffer has to grow.
const PIECE_LEN: usize = 64 * 1024;

/// Containers that are not worth a second thread.
const ALONE_COUNT: usize = 512;

/// The containers service with its `List`.
#[derive(Clone, Debug)]
pub struct WithListing<S> {
    inner: S,
    db: Db,
    message_len_max: usize,
}

impl<S> WithListing<S> {
    /// Answers `List` from `db`, up to `message_len_max` bytes, and leaves the rest to `inner`.
    pub fn new(inner: S, db: Db, message_len_max: usize) -> Self {
        Self { inner, db, message_len_max }
    }
}

impl<S: NamedService> NamedService for WithListing<S> {
    const NAME: &'static str = S::NAME;
}

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for WithListing<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        if request.uri().path() != LIST {
            return Box::pin(self.inner.call(request));
        }
        let (db, len_max) = (self.db.clone(), self.message_len_max);
        Box::pin(async move {
            let pieces = list(db, request, len_max).await;
            Ok(pieces.map_or_else(Status::into_http, |pieces| Answer::new(pieces).into_http()))
        })
    }
}

async fn list(db: Db, request: http::Request<Body>, len_max: usize) -> Result<Vec<Bytes>, Status> {
    let (parts, body) = request.into_parts();
    let decoder = ProstCodec::<(), wire::ListContainersRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, None, Some(len_max));
    let message = messages.message().await?;
    let message = message.ok_or_else(|| Status::internal("containers: list: no request"))?;
    let metadata = MetadataMap::from_headers(parts.headers);
    let request = Request::from_parts(metadata, parts.extensions, message);
    let ctx = call::context(&request)?;
    let filters = request.into_inner().filters;
    let encoding = tokio::task::spawn_blocking(move || encode(&db, &ctx, &filters, len_max));
    let ended = encoding.await;
    Ok(ended.map_err(|e| Error::internal(format!("containers: list: {e}")))??)
}

fn encode(db: &Db, ctx: &CallContext, filters: &[String], len_max: usize) -> Result<Vec<Bytes>> {
    if filters.is_empty() {
        return encode_all(&db.containers().stored(ctx)?, len_max);
    }
    let mut pieces = Pieces::new(len_max);
    db.containers().walk(ctx, filters, &mut |container| {
        let container = convert::container_to_wire(container);
        // A buffer that grows has room for it.
        pieces.container(container.encoded_len(), |piece| container.encode_raw(piece))
    })?;
    pieces.end()
}

/// Nothing is to be looked at: what is stored goes out as it is. The client waits for the length of
/// all of it, so two threads read a long list.
fn encode_all(stored: &StoredContainers, len_max: usize) -> Result<Vec<Bytes>> {
    let mut pieces = Pieces::new(len_max);
    let mut message = Vec::new();
    let rest = stored.walk_some(ALONE_COUNT, &mut |found| pieces.stored(&found, &mut message))?;
    let Some(rest) = rest else { return pieces.end() };
    let (low, high) = rest.halves()?;
    std::thread::scope(|scope| {
        let high = high.map(|high| {
            scope.spawn(move || {
                let (mut pieces, mut message) = (Pieces::more(len_max), Vec::new());
                high.walk(&mut |found| pieces.stored(&found, &mut message))?;
                Ok::<_, Error>(pieces)
            })
        });
        low.walk(&mut |found| pieces.stored(&found, &mut message))?;
        if let Some(high) = high {
            let high = high.join();
            pieces.append(high.map_err(|_| Error::internal("containers: list: panicked"))??)?;
        }
        pieces.end()
    })
}

/// A message that grows, behind the prefix it has in a body.
#[derive(Debug)]
struct Pieces {
    full: Vec<BytesMut>,
    /// Bytes in those.
    full_len: usize,
    piece: BytesMut,
    len_max: usize,
}

impl Pieces {
    fn new(len_max: usize) -> Self {
        let mut first = Self::more(len_max);
        first.piece.put_bytes(0, PREFIX_LEN);
        first
    }

    /// Those that come behind others.
    fn more(len_max: usize) -> Self {
        // The prefix is none of the message.
        let len_max = len_max.saturating_add(PREFIX_LEN);
        Self { full: Vec::new(), full_len: 0, piece: BytesMut::with_capacity(PIECE_LEN), len_max }
    }

    /// Adds a container as it is stored; `message` is room for it.
    fn stored(
        &mut self,
        container: &StoredContainer<'_>,
        message: &mut Vec<u8>,
    ) -> Result<ControlFlow<()>> {
        message.clear();
        stored::put(container, message);
        self.container(message.len(), |piece| piece.put_slice(message))
    }

    /// Adds a container of `len` bytes, which `put` writes.
    fn container(
        &mut self,
        len: usize,
        put: impl FnOnce(&mut BytesMut),
    ) -> Result<ControlFlow<()>> {
        if self.piece.len() + len > PIECE_LEN {
            self.push();
        }
        if self.piece.capacity() == 0 {
            self.piece.reserve(PIECE_LEN);
        }
        self.piece.put_u8(CONTAINERS_KEY);
        encode_varint(len as u64, &mut self.piece);
        put(&mut self.piece);
        self.check()?;
        Ok(ControlFlow::Continue(()))
    }

    /// Puts those behind these.
    fn append(&mut self, mut more: Self) -> Result<()> {
        self.push();
        more.push();
        self.full.append(&mut more.full);
        self.full_len += more.full_len;
        self.check()
    }

    fn check(&self) -> Result<()> {
        if self.full_len + self.piece.len() <= self.len_max {
            return Ok(());
        }
        let limit = self.len_max - PREFIX_LEN;
        Err(Error::resource_exhausted(format!(
            "containers: list: longer than {limit} bytes, ask by filters or as a stream"
        )))
    }

    fn push(&mut self) {
        if !self.piece.is_empty() {
            self.full_len += self.piece.len();
            self.full.push(std::mem::take(&mut self.piece));
        }
    }

    fn end(mut self) -> Result<Vec<Bytes>> {
        self.push();
        let prefix = prefix(self.full_len - PREFIX_LEN)?;
        if let Some(first) = self.full.first_mut() {
            first[..PREFIX_LEN].copy_from_slice(&prefix);
        }
        Ok(self.full.into_iter().map(BytesMut::freeze).collect())
    }
}
