//! Several messages either way under one stream id.

use std::time::Duration;

use bytes::Bytes;
use gantry_errdefs::{Error, Result};
use prost::Message;
use tokio::sync::mpsc;

use crate::frame::{DATA, NO_DATA, Outgoing, REMOTE_CLOSED};
use crate::writer::Writer;

/// Messages of one stream that wait for their reader.
const MESSAGES_QUEUED_MAX: usize = 64;

/// How long a full queue may hold up the other calls of its connection. ttrpc has no flow
/// control of its own, so the reader of a connection has to wait, as Go's does; unlike Go's it
/// gives up on a stream that nobody reads.
const READER_STALL_MAX: Duration = Duration::from_secs(5);

/// What arrives on a stream.
#[derive(Debug)]
pub(crate) enum Item {
    /// A message.
    Data(Bytes),
    /// The end; a server may put a last message there.
    End(Result<Option<Bytes>>),
}

/// Where the reader of a connection puts the items of one stream.
pub(crate) type Feed = mpsc::Sender<Item>;

/// Gives `item` to the reader of a stream.
///
/// # Errors
/// ResourceExhausted when nobody reads for too long, Canceled when the reader is gone.
pub(crate) async fn feed(feed: &Feed, item: Item) -> Result<()> {
    match feed.send_timeout(item, READER_STALL_MAX).await {
        Ok(()) => Ok(()),
        Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(Error::resource_exhausted(format!(
            "stream: {MESSAGES_QUEUED_MAX} messages unread for {READER_STALL_MAX:?}"
        ))),
        Err(mpsc::error::SendTimeoutError::Closed(_)) => {
            Err(Error::canceled("stream: nobody reads it"))
        }
    }
}

/// One open stream, on either side of a connection.
///
/// Dropping it stops reading. A client's stream ends with the answer of the server, a server's
/// with the result of its handler.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    writer: Writer,
    incoming: mpsc::Receiver<Item>,
    ended: bool,
}

impl Stream {
    pub(crate) fn new(id: u32, writer: Writer) -> (Self, Feed) {
        let (feed, incoming) = mpsc::channel(MESSAGES_QUEUED_MAX);
        (Self { id, writer, incoming, ended: false }, feed)
    }

    pub(crate) fn set_id(&mut self, id: u32) {
        self.id = id;
    }

    /// Sends one message.
    ///
    /// # Errors
    /// ResourceExhausted when it is larger than a frame, Unavailable when the connection died.
    pub async fn send<M: Message>(&self, message: &M) -> Result<()> {
        self.writer.send(Outgoing::message(self.id, DATA, 0, message)?).await
    }

    /// Tells the peer that no more messages follow; its own may still come.
    ///
    /// # Errors
    /// Unavailable when the connection died.
    pub async fn close_send(&self) -> Result<()> {
        self.writer.send(Outgoing::flags(self.id, REMOTE_CLOSED | NO_DATA)).await
    }

    /// The next message; none after the last.
    ///
    /// # Errors
    /// The error with which the peer ended the stream, InvalidArgument when the bytes are not
    /// such a message, Unavailable when the connection died.
    pub async fn receive<M: Message + Default>(&mut self) -> Result<Option<M>> {
        if self.ended {
            return Ok(None);
        }
        let payload = match self.incoming.recv().await {
            Some(Item::Data(payload)) => payload,
            Some(Item::End(last)) => {
                self.ended = true;
                match last? {
                    Some(last) => last,
                    None => return Ok(None),
                }
            }
            None => {
                self.ended = true;
                return Err(Error::unavailable("stream: ttrpc connection closed"));
            }
        };
        M::decode(payload)
            .map(Some)
            .map_err(|e| Error::invalid_argument(format!("stream message: {e}")).with_source(e))
    }
}
