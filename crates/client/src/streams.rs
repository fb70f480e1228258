//! Streams of messages and of bytes beside a transfer.
//!
//! Bytes are sent under a window that the receiver opens, so that a slow receiver is not run
//! over: `Data` one way, `WindowUpdate` the other.

use bytes::{BufMut as _, BytesMut};
use gantry_api::containerd::services::streaming::v1::StreamInit;
use gantry_api::containerd::services::streaming::v1::streaming_client::StreamingClient;
use gantry_api::containerd::types::transfer::{Data, WindowUpdate};
use gantry_api::{BytesAny, Payload as _};
use gantry_errdefs::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::{Client, service};
use crate::convert::{cut_off, status};

/// Messages of one stream that may wait to be sent.
const QUEUED_MAX: usize = 16;

/// Largest piece of bytes in one message, as far as the daemon's window goes: each costs a hand-over
/// between tasks on both sides.
const DATA_SIZE_MAX: usize = 256 << 10;

/// Bytes the sender may have under way. containerd's clients allow 64 KiB, with which two messages
/// are all that is on its way; daemons send as much as they are allowed.
const WINDOW_SIZE: i32 = 2 << 20;

/// A stream of messages, both ways.
pub(crate) struct MessageStream {
    id: String,
    sender: mpsc::Sender<BytesAny>,
    receiver: Streaming<BytesAny>,
}

impl MessageStream {
    /// Opens a stream under a new id, which a transfer can then name.
    pub(crate) async fn open(client: &Client, kind: &str) -> Result<Self> {
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(16).collect();
        let id = format!("{kind}-{random}");
        let (sender, queue) = mpsc::channel(QUEUED_MAX);
        let init = BytesAny::pack(&StreamInit { id: id.clone() });
        sender.try_send(init).expect("an empty queue takes a message");
        let mut receiver = service!(client, StreamingClient)
            .stream(client.request(ReceiverStream::new(queue)))
            .await
            .map_err(status)?
            .into_inner();
        // The answer says that the id is known from now on.
        let opened = receiver.message().await.map_err(status)?;
        if opened.is_none() {
            return Err(cut_off(format!("stream {id}")));
        }
        Ok(Self { id, sender, receiver })
    }

    /// The id, for naming the stream in a transfer.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The next message; None at the end.
    pub(crate) async fn receive(&mut self) -> Result<Option<BytesAny>> {
        self.receiver.message().await.map_err(status)
    }

    /// Sends a message.
    pub(crate) async fn send(&self, message: BytesAny) -> Result<()> {
        let closed = |_| cut_off(format!("stream {}", self.id));
        self.sender.send(message).await.map_err(closed)
    }

    /// Sends all that `reader` gives, then ends this side.
    pub(crate) async fn send_bytes(mut self, reader: &mut (impl AsyncRead + Unpin)) -> Result<()> {
        let mut window: i64 = 0;
        let mut buffer = BytesMut::new();
        loop {
            while window <= 0 {
                let Some(message) = self.receive().await? else {
                    return Err(cut_off(format!("stream {}", self.id)));
                };
                if let Some(update) = message.unpack::<WindowUpdate>()? {
                    window += i64::from(update.update);
                }
            }
            let room = usize::try_from(window).unwrap_or(DATA_SIZE_MAX).min(DATA_SIZE_MAX);
            buffer.reserve(room);
            let count = reader
                .read_buf(&mut (&mut buffer).limit(room))
                .await
                .map_err(|e| Error::io("reading what is to be sent", e))?;
            if count == 0 {
                return self.finish().await;
            }
            window -= count as i64;
            self.send(BytesAny::data(buffer.split_to(count).freeze())).await?;
        }
    }

    /// Ends this side and waits for the other: dropping the call resets it, and what is still
    /// under way would be lost.
    async fn finish(self) -> Result<()> {
        let Self { sender, mut receiver, .. } = self;
        drop(sender);
        // Why the other side ends is told by the transfer itself.
        while let Ok(Some(_)) = receiver.message().await {}
        Ok(())
    }

    /// Writes all that comes to `writer`, until the other side ends; returns the byte count.
    pub(crate) async fn receive_bytes(
        mut self,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64> {
        let mut total = 0;
        let mut open = 0;
        loop {
            if open < WINDOW_SIZE / 2 {
                let update = WINDOW_SIZE - open;
                // After the last byte nobody may listen any more.
                let _ = self.send(BytesAny::pack(&WindowUpdate { update })).await;
                open += update;
            }
            let Some(message) = self.receive().await? else { break };
            let Some(data) = message.unpack::<Data>()? else { continue };
            let io = |e| Error::io("writing what was received", e);
            writer.write_all(&data.data).await.map_err(io)?;
            total += data.data.len() as u64;
            open -= i32::try_from(data.data.len()).unwrap_or(i32::MAX).min(open);
        }
        writer.flush().await.map_err(|e| Error::io("writing what was received", e))?;
        Ok(total)
    }
}
