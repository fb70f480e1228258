//! Writing a blob into a plugin.

use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::containerd::services::content::v1 as wire;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_content::{Status, Writer, WriterOptions};
use gantry_core::{Digest, deadlines};
use gantry_errdefs::{Error, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{CONTENT_NAMESPACE, Released};
use crate::convert::{size, size_to_wire, time};
use crate::plugin::{Plugin, Turn, request};

/// Largest piece sent at once, in bytes; far below the message limit.
const PIECE_LEN_MAX: usize = 1 << 20;

/// Messages under way: each is answered before the next one is sent.
const QUEUE_LEN: usize = 1;

/// An ingest of a plugin, held open by a stream.
pub(super) struct ProxyWriter {
    plugin: Plugin,
    sender: mpsc::Sender<wire::WriteContentRequest>,
    answers: Streaming<wire::WriteContentResponse>,
    status: Status,
    digest: Digest,
    /// Bytes that the plugin has stored; more than `status.offset` once truncated, until the
    /// next write says so.
    stored: u64,
    released: Released,
    _turn: Turn,
}

impl ProxyWriter {
    pub(super) async fn open(
        plugin: Plugin,
        mut client: ContentClient<Channel>,
        options: &WriterOptions,
        released: Released,
    ) -> Result<Self> {
        let what = format!("write of {:?}", options.reference);
        let deadline = deadlines::PLUGIN_READ;
        let turn = async { plugin.turn().await.map_err(Into::into) };
        let turn = plugin.within(&what, deadline, turn).await?;
        let (sender, requests) = mpsc::channel(QUEUE_LEN);
        let first = wire::WriteContentRequest {
            action: wire::WriteAction::Stat.into(),
            r#ref: options.reference.clone(),
            total: size_to_wire(options.total),
            expected: options.expected.as_ref().map(Digest::to_string).unwrap_or_default(),
            ..wire::WriteContentRequest::default()
        };
        sender.try_send(first).map_err(|_| Error::internal("a new queue is full"))?;
        let open = async {
            let requests = request(CONTENT_NAMESPACE, ReceiverStream::new(requests));
            let mut answers = client.write(requests).await?.into_inner();
            let first = answers.message().await?;
            Ok((answers, first))
        };
        let (answers, first) = plugin.within(&what, deadline, open).await?;
        let first = first.ok_or_else(|| closed(&plugin, &what))?;
        let status = Status {
            reference: options.reference.clone(),
            offset: size(first.offset),
            total: if first.total > 0 { size(first.total) } else { options.total },
            expected: options.expected.clone(),
            started_at: time(first.started_at),
            updated_at: time(first.updated_at),
        };
        let (stored, digest) = (status.offset, Digest::of(b""));
        let mut writer =
            Self { plugin, sender, answers, status, digest, stored, released, _turn: turn };
        writer.learn(&first)?;
        Ok(writer)
    }

    fn what(&self) -> String {
        format!("write of {:?}", self.status.reference)
    }

    /// Takes over what an answer tells.
    fn learn(&mut self, answer: &wire::WriteContentResponse) -> Result<()> {
        if !answer.digest.is_empty() {
            self.digest = answer.digest.parse()?;
        }
        Ok(())
    }

    /// Sends a message and waits for its answer.
    async fn ask(
        &mut self,
        message: wire::WriteContentRequest,
        deadline: std::time::Duration,
    ) -> Result<wire::WriteContentResponse> {
        let what = self.what();
        // A stream that has ended tells why in its last answer.
        let _ = tokio::time::timeout(deadline, self.sender.send(message)).await;
        let answer = self.plugin.within(&what, deadline, self.answers.message()).await?;
        answer.ok_or_else(|| closed(&self.plugin, &what))
    }
}

fn closed(plugin: &Plugin, what: &str) -> Error {
    Error::unavailable(format!("{plugin}: {what}: the plugin closed the stream"))
}

#[async_trait]
impl Writer for ProxyWriter {
    async fn write(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_LEN_MAX));
            let end = self.status.offset + piece.len() as u64;
            let message = wire::WriteContentRequest {
                action: wire::WriteAction::Write.into(),
                r#ref: self.status.reference.clone(),
                offset: size_to_wire(self.status.offset),
                data: piece,
                ..wire::WriteContentRequest::default()
            };
            let answer = self.ask(message, deadlines::PLUGIN_PIECE).await?;
            self.learn(&answer)?;
            self.stored = size(answer.offset);
            if self.stored != end {
                let (stored, what) = (self.stored, self.what());
                let text = format!("{}: {what}: {stored} of {end} bytes", self.plugin);
                return Err(Error::data_loss(text));
            }
            self.status.offset = end;
            self.status.updated_at = std::time::SystemTime::now();
        }
        Ok(())
    }

    fn status(&self) -> Status {
        self.status.clone()
    }

    fn digest(&self) -> Digest {
        self.digest.clone()
    }

    /// The API can only begin anew: to another size than 0 this is Unimplemented.
    async fn truncate(&mut self, size: u64) -> Result<()> {
        if size > self.status.offset {
            let (what, offset) = (self.what(), self.status.offset);
            let text = format!("{what}: cannot truncate {offset} bytes to {size}");
            return Err(Error::invalid_argument(text));
        }
        if size == self.status.offset {
            return Ok(());
        }
        if size > 0 {
            let text = format!("{}: {}: truncation to {size} bytes", self.plugin, self.what());
            return Err(Error::unimplemented(text));
        }
        // The next write says offset 0, which is how the API truncates.
        self.status.offset = 0;
        self.digest = Digest::of(b"");
        Ok(())
    }

    async fn commit(mut self: Box<Self>, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        if self.stored != self.status.offset {
            let text = format!("{}: truncated, and nothing was written since", self.what());
            return Err(Error::failed_precondition(text));
        }
        let message = wire::WriteContentRequest {
            action: wire::WriteAction::Commit.into(),
            r#ref: self.status.reference.clone(),
            total: size_to_wire(size),
            expected: expected.map(Digest::to_string).unwrap_or_default(),
            offset: size_to_wire(self.status.offset),
            ..wire::WriteContentRequest::default()
        };
        let answer = self.ask(message, deadlines::PLUGIN_COMMIT).await?;
        self.learn(&answer)?;
        Ok(self.digest.clone())
    }
}

impl Drop for ProxyWriter {
    fn drop(&mut self) {
        self.released.add(&self.status.reference);
    }
}
