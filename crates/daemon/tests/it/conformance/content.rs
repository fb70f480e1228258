//! The content service as a content store.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_api::containerd::services::content::v1 as wire;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_content::{Info, Reader, Status, Store, Writer, WriterOptions};
use gantry_core::{Context, Digest};
use gantry_errdefs::{Error, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{field, time, with};

/// The content of a daemon, through its service.
pub(super) struct Remote {
    channel: Channel,
    ctx: Context,
    /// References that our own writers have open.
    open: Arc<Mutex<HashSet<String>>>,
}

impl Remote {
    pub(super) async fn new(channel: Channel) -> Self {
        let ctx = super::lease(&channel, "suite-content").await;
        Self { channel, ctx, open: Arc::default() }
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }
}

fn number(n: i64) -> u64 {
    u64::try_from(n).unwrap()
}

fn info(wire: wire::Info) -> Result<Info> {
    Ok(Info {
        digest: wire.digest.parse()?,
        size: number(wire.size),
        created_at: time(wire.created_at),
        updated_at: time(wire.updated_at),
    })
}

fn status(wire: wire::Status) -> Status {
    Status {
        reference: wire.r#ref,
        offset: number(wire.offset),
        total: number(wire.total),
        expected: wire.expected.parse().ok(),
        started_at: time(wire.started_at),
        updated_at: time(wire.updated_at),
    }
}

#[async_trait]
impl Store for Remote {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        let request = wire::InfoRequest { digest: digest.to_string() };
        let answer = self.client().info(with(&self.ctx, request)).await?.into_inner();
        info(field(answer.info)?)
    }

    async fn reader(&self, digest: &Digest) -> Result<Box<dyn Reader>> {
        let size = self.info(digest).await?.size;
        let bytes = read(self.client(), &self.ctx, digest, 0, 0).await?;
        assert_eq!(bytes.len() as u64, size);
        let (client, ctx, digest) = (self.client(), self.ctx.clone(), digest.clone());
        Ok(Box::new(RemoteReader { client, ctx, digest, bytes }))
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let request = wire::DeleteContentRequest { digest: digest.to_string() };
        self.client().delete(with(&self.ctx, request)).await?;
        Ok(())
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        let request = wire::ListContentRequest { filters: vec![] };
        let mut pages = self.client().list(with(&self.ctx, request)).await?.into_inner();
        while let Some(page) = pages.message().await? {
            page.info.into_iter().try_for_each(|wire| visit(info(wire)?))?;
        }
        Ok(())
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>> {
        let ours = self.open.lock().unwrap().contains(&options.reference);
        loop {
            match RemoteWriter::open(self, options.clone()).await {
                // A stream that was dropped ends a moment later.
                Err(e) if e.is_unavailable() && !ours => tokio::task::yield_now().await,
                other => return Ok(Box::new(other?)),
            }
        }
    }

    async fn status(&self, reference: &str) -> Result<Status> {
        let request = wire::StatusRequest { r#ref: reference.into() };
        let answer = self.client().status(with(&self.ctx, request)).await?.into_inner();
        Ok(status(field(answer.status)?))
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        let request = wire::ListStatusesRequest { filters: vec![] };
        let answer = self.client().list_statuses(with(&self.ctx, request)).await?.into_inner();
        Ok(answer.statuses.into_iter().map(status).collect())
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        let request = wire::AbortRequest { r#ref: reference.into() };
        self.client().abort(with(&self.ctx, request)).await?;
        Ok(())
    }
}

async fn read(
    mut client: ContentClient<Channel>,
    ctx: &Context,
    digest: &Digest,
    offset: u64,
    len: usize,
) -> Result<Bytes> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let request = wire::ReadContentRequest {
        digest: digest.to_string(),
        offset: signed(offset),
        size: signed(len as u64),
    };
    let mut chunks = client.read(with(ctx, request)).await?.into_inner();
    let mut all = BytesMut::new();
    while let Some(chunk) = chunks.message().await? {
        assert_eq!(number(chunk.offset), all.len() as u64, "offsets count from this read");
        assert!(chunk.data.len() <= 1 << 20, "{} bytes in a message", chunk.data.len());
        all.extend_from_slice(&chunk.data);
    }
    Ok(all.freeze())
}

/// A blob, read once when it was opened: the service itself has no open readers.
struct RemoteReader {
    client: ContentClient<Channel>,
    ctx: Context,
    digest: Digest,
    bytes: Bytes,
}

#[async_trait]
impl Reader for RemoteReader {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        match read(self.client.clone(), &self.ctx, &self.digest, offset, len).await {
            Err(e) if e.is_out_of_range() => Ok(Bytes::new()),
            Err(e) if e.is_not_found() => {
                let start = usize::try_from(offset).unwrap().min(self.bytes.len());
                Ok(self.bytes.slice(start..self.bytes.len().min(start + len)))
            }
            other => other,
        }
    }

    fn into_blocking(self: Box<Self>) -> Box<dyn std::io::Read + Send> {
        Box::new(std::io::Cursor::new(self.bytes))
    }
}

/// One stream of the write method.
struct RemoteWriter {
    messages: mpsc::Sender<wire::WriteContentRequest>,
    answers: Streaming<wire::WriteContentResponse>,
    options: WriterOptions,
    last: wire::WriteContentResponse,
    /// What was written through it: to cut an ingest, a client writes its beginning anew.
    written: Vec<u8>,
    open: Arc<Mutex<HashSet<String>>>,
}

impl RemoteWriter {
    async fn open(remote: &Remote, options: WriterOptions) -> Result<Self> {
        let (messages, queue) = mpsc::channel(1);
        let stat = wire::WriteContentRequest {
            action: wire::WriteAction::Stat.into(),
            r#ref: options.reference.clone(),
            total: i64::try_from(options.total).unwrap(),
            expected: options.expected.as_ref().map(Digest::to_string).unwrap_or_default(),
            ..Default::default()
        };
        messages.send(stat).await.unwrap();
        let stream = with(&remote.ctx, ReceiverStream::new(queue));
        let mut answers = remote.client().write(stream).await?.into_inner();
        let last = field(answers.message().await?)?;
        let open = Arc::clone(&remote.open);
        open.lock().unwrap().insert(options.reference.clone());
        Ok(Self { messages, answers, options, last, written: Vec::new(), open })
    }

    async fn send(&mut self, message: wire::WriteContentRequest) -> Result<()> {
        // A stream that has ended says why in its last answer.
        let _ = self.messages.send(message).await;
        let answer = self.answers.message().await?;
        self.last = answer.ok_or_else(|| Error::internal("the stream has ended"))?;
        Ok(())
    }
}

impl Drop for RemoteWriter {
    fn drop(&mut self) {
        self.open.lock().unwrap().remove(&self.options.reference);
    }
}

#[async_trait]
impl Writer for RemoteWriter {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.written.extend_from_slice(&data);
        let message = wire::WriteContentRequest {
            action: wire::WriteAction::Write.into(),
            offset: self.last.offset,
            data,
            ..Default::default()
        };
        self.send(message).await
    }

    fn status(&self) -> Status {
        Status {
            reference: self.options.reference.clone(),
            offset: number(self.last.offset),
            total: self.options.total,
            expected: self.options.expected.clone(),
            started_at: time(self.last.started_at),
            updated_at: time(self.last.updated_at),
        }
    }

    fn digest(&self) -> Digest {
        self.last.digest.parse().unwrap()
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        let size = usize::try_from(size).unwrap();
        let Some(kept) = self.written.get(..size) else {
            return Err(Error::invalid_argument("no client can lengthen an ingest"));
        };
        let data = Bytes::copy_from_slice(kept);
        self.written.clear();
        self.last.offset = 0;
        self.write(data).await
    }

    async fn commit(mut self: Box<Self>, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let message = wire::WriteContentRequest {
            action: wire::WriteAction::Commit.into(),
            offset: self.last.offset,
            total: i64::try_from(size).unwrap(),
            expected: expected.map(Digest::to_string).unwrap_or_default(),
            ..Default::default()
        };
        self.send(message).await?;
        Ok(self.digest())
    }
}
