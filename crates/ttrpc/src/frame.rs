//! Frames: a ten-byte header and a payload.
//!
//! ```text
//! 0        4         8      9       10
//! | length | stream  | kind | flags | payload, `length` bytes ...
//! ```
//! Numbers are big-endian. A client numbers its streams 1, 3, 5, ...

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use gantry_errdefs::{Error, Result};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest payload of a frame, 4 MiB: the limit of Go's ttrpc, so no peer sends more.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Length of a header.
pub(crate) const HEADER_BYTES: usize = 10;

/// What one read may add to the buffer. Requests and answers of shims are mostly below 1 KiB,
/// and an idle connection keeps no more than this.
const READ_BYTES: usize = 4 << 10;

/// Opens a stream: the payload is a `Request`.
pub(crate) const REQUEST: u8 = 1;
/// Ends a stream: the payload is a `Response`.
pub(crate) const RESPONSE: u8 = 2;
/// One message of a stream.
pub(crate) const DATA: u8 = 3;

/// The sender sends no more on this stream.
pub(crate) const REMOTE_CLOSED: u8 = 1;
/// The sender will send more on this stream.
pub(crate) const REMOTE_OPEN: u8 = 2;
/// The frame has no message, only flags.
pub(crate) const NO_DATA: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) length: u32,
    pub(crate) stream: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

impl Header {
    fn parse(mut bytes: &[u8]) -> Self {
        Self {
            length: bytes.get_u32(),
            stream: bytes.get_u32(),
            kind: bytes.get_u8(),
            flags: bytes.get_u8(),
        }
    }

    /// The frame of this header and `payload`, as it came in.
    pub(crate) fn with(self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&self.length.to_be_bytes());
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(payload);
        bytes
    }
}

/// What comes in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A frame within the limit.
    Frame(Header, Bytes),
    /// A frame beyond the limit; its payload has been read and thrown away.
    Oversized(Header),
}

/// A frame ready to be written.
#[derive(Debug)]
pub(crate) struct Outgoing(Vec<u8>);

impl Outgoing {
    /// A frame whose payload is `message`.
    ///
    /// # Errors
    /// ResourceExhausted above [`FRAME_BYTES_MAX`].
    pub(crate) fn message(
        stream: u32,
        kind: u8,
        flags: u8,
        message: &impl Message,
    ) -> Result<Self> {
        let length = message.encoded_len();
        if length > FRAME_BYTES_MAX {
            return Err(too_large(length));
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
        let length = u32::try_from(length).expect("below the limit");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(&[kind, flags]);
        message.encode(&mut bytes).expect("a Vec grows as needed");
        Ok(Self(bytes))
    }

    /// A frame of flags only.
    pub(crate) fn flags(stream: u32, flags: u8) -> Self {
        Self::message(stream, DATA, flags, &()).expect("an empty message is small")
    }

    /// Puts in the stream id when it was not known while encoding.
    pub(crate) fn set_stream(&mut self, stream: u32) {
        self.0[4..8].copy_from_slice(&stream.to_be_bytes());
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn stream(&self) -> u32 {
        Header::parse(&self.0[..HEADER_BYTES]).stream
    }

    /// Whether nothing follows on its stream.
    pub(crate) fn is_last(&self) -> bool {
        let header = Header::parse(&self.0[..HEADER_BYTES]);
        header.kind == RESPONSE || header.flags & REMOTE_CLOSED != 0
    }
}

/// The error for a message of `length` bytes.
pub(crate) fn too_large(length: usize) -> Error {
    Error::resource_exhausted(format!(
        "message of {length} bytes: the limit is {FRAME_BYTES_MAX} bytes"
    ))
}

/// Reads frames, whatever the sizes the bytes arrive in.
pub(crate) struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
    /// A frame that is being thrown away, and how much of it is still to come.
    discarding: Option<(Header, usize)>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self::resume(inner, &[])
    }

    /// Reads `input` first.
    pub(crate) fn resume(inner: R, input: &[u8]) -> Self {
        Self { inner, buffer: BytesMut::from(input), discarding: None }
    }

    /// What was read and is not part of a frame that was returned. None when that cannot be told,
    /// as some of it was thrown away.
    pub(crate) fn rest(&self) -> Option<&[u8]> {
        self.discarding.is_none().then_some(&self.buffer)
    }

    /// The next frame; none at a clean end, which is between two frames. Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Incoming>> {
        if let Some((header, _)) = self.discarding {
            self.discard().await?;
            return Ok(Some(Incoming::Oversized(header)));
        }
        while self.buffer.len() < HEADER_BYTES {
            if self.fill().await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let header = Header::parse(&self.buffer[..HEADER_BYTES]);
        let length = header.length as usize;
        if length > FRAME_BYTES_MAX {
            self.buffer.advance(HEADER_BYTES);
            self.discarding = Some((header, length));
            self.discard().await?;
            return Ok(Some(Incoming::Oversized(header)));
        }
        // Space is made as bytes arrive, never for what a header merely claims.
        while self.buffer.len() < HEADER_BYTES + length {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.buffer.advance(HEADER_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // The payload owns the allocation now; an idle connection holds none.
            self.buffer = BytesMut::new();
        }
        Ok(Some(Incoming::Frame(header, payload)))
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.inner.read_buf(&mut self.buffer).await
    }

    async fn discard(&mut self) -> io::Result<()> {
        while let Some((_, left)) = &mut self.discarding {
            let here = (*left).min(self.buffer.len());
            self.buffer.advance(here);
            *left -= here;
            if *left == 0 {
                self.discarding = None;
            } else if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}
