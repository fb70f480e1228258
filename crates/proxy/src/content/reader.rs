//! Reading a blob of a plugin.

use std::io;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_api::containerd::services::content::v1 as wire;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_content::{Info, Reader};
use gantry_core::deadlines;
use gantry_errdefs::{Error, Result};
use tokio::runtime::Handle;
use tonic::Streaming;
use tonic::transport::Channel;

use super::CONTENT_NAMESPACE;
use crate::convert::size_to_wire;
use crate::plugin::{Plugin, Turn, request};

/// A blob of a plugin; every read is a call of its own.
pub(super) struct ProxyReader {
    plugin: Plugin,
    client: ContentClient<Channel>,
    info: Info,
    runtime: Handle,
}

/// Pieces of a blob as they come.
struct Pieces {
    plugin: Plugin,
    what: String,
    stream: Streaming<wire::ReadContentResponse>,
    _turn: Turn,
}

impl ProxyReader {
    pub(super) fn new(plugin: Plugin, client: ContentClient<Channel>, info: Info) -> Self {
        Self { plugin, client, info, runtime: Handle::current() }
    }

    /// Opens the blob from `offset` on, `len` bytes or, for 0, all.
    async fn open(&self, offset: u64, len: u64) -> Result<Pieces> {
        let what = format!("read of {}", self.info.digest);
        let deadline = deadlines::PLUGIN_PIECE;
        let turn = async { self.plugin.turn().await.map_err(Into::into) };
        let turn = self.plugin.within(&what, deadline, turn).await?;
        let message = wire::ReadContentRequest {
            digest: self.info.digest.to_string(),
            offset: size_to_wire(offset),
            size: size_to_wire(len),
        };
        let mut client = self.client.clone();
        let call = client.read(request(CONTENT_NAMESPACE, message));
        let stream = self.plugin.within(&what, deadline, call).await?.into_inner();
        Ok(Pieces { plugin: self.plugin.clone(), what, stream, _turn: turn })
    }
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let next = self.stream.message();
        let piece = self.plugin.within(&self.what, deadlines::PLUGIN_PIECE, next).await?;
        Ok(piece.map(|piece| piece.data))
    }
}

#[async_trait]
impl Reader for ProxyReader {
    fn size(&self) -> u64 {
        self.info.size
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let len = (len as u64).min(self.info.size.saturating_sub(offset));
        // To the service, 0 bytes are all of them.
        if len == 0 {
            return Ok(Bytes::new());
        }
        let mut pieces = self.open(offset, len).await?;
        let mut all = BytesMut::new();
        while let Some(piece) = pieces.next().await? {
            all.extend_from_slice(&piece);
        }
        if all.len() as u64 != len {
            let text = format!("{}: {} of {len} bytes at {offset}", pieces.what, all.len());
            return Err(Error::data_loss(format!("{}: {text}", self.plugin)));
        }
        Ok(all.freeze())
    }

    fn into_blocking(self: Box<Self>) -> Box<dyn io::Read + Send> {
        Box::new(Blocking { reader: *self, pieces: None, rest: Bytes::new(), read: 0 })
    }
}

/// A blob as a stream for blocking threads.
struct Blocking {
    reader: ProxyReader,
    /// Opened by the first read.
    pieces: Option<Pieces>,
    rest: Bytes,
    /// Bytes that came.
    read: u64,
}

impl Blocking {
    fn fill(&mut self) -> Result<()> {
        let runtime = self.reader.runtime.clone();
        while self.rest.is_empty() && self.read < self.reader.info.size {
            let reader = &self.reader;
            let pieces = match &mut self.pieces {
                Some(pieces) => pieces,
                none => none.insert(runtime.block_on(reader.open(0, 0))?),
            };
            let Some(piece) = runtime.block_on(pieces.next())? else {
                let (read, size) = (self.read, reader.info.size);
                let text = format!("{}: {read} of {size} bytes", pieces.what);
                return Err(Error::data_loss(format!("{}: {text}", reader.plugin)));
            };
            self.read += piece.len() as u64;
            self.rest = piece;
        }
        Ok(())
    }
}

impl io::Read for Blocking {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.fill().map_err(io::Error::other)?;
        let len = self.rest.len().min(buf.len());
        buf[..len].copy_from_slice(&self.rest.split_to(len));
        Ok(len)
    }
}
