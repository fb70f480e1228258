//! The list of containers, encoded while it is read.
//!
//! A host may have ten thousand containers, whose records are some megabytes. Made into wire
//! messages first and encoded then, they would be in memory several times; here each record is
//! encoded as soon as it is read, and dropped; without filters it is not even taken apart.

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
use gantry_metadata::Db;
use prost::Message as _;
use prost::encoding::encode_varint;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

use crate::{call, convert};

/// The one method that is not left to the generated service.
const LIST: &str = "/containerd.services.containers.v1.Containers/List";

/// Field `containers` of the answer, as its key on the wire.
const CONTAINERS_KEY: u8 = 1 << 3 | 2;

/// Encoded records are kept in pieces of about this many bytes, so that no buffer has to grow.
const PIECE_LEN: usize = 64 * 1024;

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

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for WithListing<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        if request.uri().path() != LIST {
            return Box::pin(self.inner.call(request));
        }
        let limit = Some(self.message_len_max);
        let method = List { db: self.db.clone(), len_max: self.message_len_max };
        Box::pin(async move {
            let mut grpc = Grpc::new(ListCodec).apply_max_message_size_config(limit, limit);
            Ok(grpc.unary(method, request).await)
        })
    }
}

struct List {
    db: Db,
    len_max: usize,
}

impl UnaryService<wire::ListContainersRequest> for List {
    type Response = Encoded;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Encoded>, Status>> + Send>>;

    fn call(&mut self, request: Request<wire::ListContainersRequest>) -> Self::Future {
        let (db, len_max) = (self.db.clone(), self.len_max);
        Box::pin(async move {
            let ctx = call::context(&request)?;
            let filters = request.into_inner().filters;
            let encoding =
                tokio::task::spawn_blocking(move || encode(&db, &ctx, &filters, len_max));
            let ended = encoding.await;
            let encoded = ended.map_err(|e| Error::internal(format!("containers: list: {e}")))?;
            Ok(Response::new(encoded?))
        })
    }
}

fn encode(db: &Db, ctx: &CallContext, filters: &[String], len_max: usize) -> Result<Encoded> {
    let mut pieces = Pieces { len_max, ..Pieces::default() };
    if filters.is_empty() {
        // Nothing is to be looked at: what is stored goes out as it is.
        let mut message = Vec::new();
        db.containers().walk_stored(ctx, &mut |container| {
            message.clear();
            stored::put(&container, &mut message);
            pieces.container(message.len(), |piece| piece.put_slice(&message))
        })?;
    } else {
        db.containers().walk(ctx, filters, &mut |container| {
            let container = convert::container_to_wire(container);
            // A buffer that grows has room for it.
            pieces.container(container.encoded_len(), |piece| container.encode_raw(piece))
        })?;
    }
    pieces.push();
    Ok(pieces.encoded)
}

/// An encoded message, in pieces.
#[derive(Debug, Default)]
struct Encoded {
    pieces: Vec<Bytes>,
    len: usize,
}

/// An answer that grows.
#[derive(Debug, Default)]
struct Pieces {
    encoded: Encoded,
    piece: BytesMut,
    len_max: usize,
}

impl Pieces {
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
        if self.encoded.len + self.piece.len() > self.len_max {
            let limit = self.len_max;
            return Err(Error::resource_exhausted(format!(
                "containers: list: longer than {limit} bytes, ask by filters or as a stream"
            )));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn push(&mut self) {
        if !self.piece.is_empty() {
            self.encoded.len += self.piece.len();
            self.encoded.pieces.push(std::mem::take(&mut self.piece).freeze());
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct ListCodec;

impl Codec for ListCodec {
    type Encode = Encoded;
    type Decode = wire::ListContainersRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for ListCodec {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, item: Encoded, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.len);
        item.pieces.into_iter().for_each(|piece| out.put(piece));
        Ok(())
    }
}

impl Decoder for ListCodec {
    type Item = wire::ListContainersRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let request = wire::ListContainersRequest::decode(from);
        request.map(Some).map_err(|e| Status::internal(format!("containers: list: {e}")))
    }
}
