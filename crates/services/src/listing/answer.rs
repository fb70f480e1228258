//! An answer of one message that is there already, in pieces.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use gantry_errdefs::{Error, Result};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;

/// What stands before each message: whether it is compressed, and its length (gRPC over HTTP/2,
/// *Length-Prefixed-Message*).
pub(super) const PREFIX_LEN: usize = 5;

/// The prefix of a message that is not compressed.
///
/// # Errors
/// ResourceExhausted when no prefix can say the length.
pub(super) fn prefix(len: usize) -> Result<[u8; PREFIX_LEN]> {
    let len = u32::try_from(len)
        .map_err(|_| Error::resource_exhausted(format!("a message of {len} bytes")))?;
    let [a, b, c, d] = len.to_be_bytes();
    Ok([0, a, b, c, d])
}

/// The body of an answer: a message with its prefix, and that all is well.
#[derive(Debug)]
pub(super) struct Answer {
    pieces: std::vec::IntoIter<Bytes>,
    ended: bool,
}

impl Answer {
    pub(super) fn new(pieces: Vec<Bytes>) -> Self {
        Self { pieces: pieces.into_iter(), ended: false }
    }

    pub(super) fn into_http(self) -> http::Response<Body> {
        let mut response = http::Response::new(Body::new(self));
        response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        response
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = self.pieces.next() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let ok = HeaderValue::from_static("0");
        let trailers = HeaderMap::from_iter([(Status::GRPC_STATUS, ok)]);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
