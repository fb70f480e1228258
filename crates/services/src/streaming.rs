//! `containerd.services.streaming.v1`: named two-way streams that another call picks up.
//!
//! A client opens a stream under a name of its choice and passes the name to, say, Transfer. The
//! service there takes the stream ([`Streams::take`]) and owns it: dropping the [`Stream`] ends
//! the client's call. Queues are one message deep beside what HTTP/2 buffers, so a side that does
//! not read holds the other up and memory stays flat.
//!
//! A stream that is opened under a lease ends with it, unless something refers to it with
//! `containerd.io/gc.ref.stream`.

use std::collections::HashMap;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context as TaskContext, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::containerd::services::streaming::v1::StreamInit;
use gantry_api::containerd::services::streaming::v1::streaming_server::Streaming;
use gantry_api::{BytesAny, Payload as _};
use gantry_core::{Context, Labels, Namespace};
use gantry_errdefs::{Error, Result};
use gantry_metadata::{Db, Member, MemberKind, Members};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::call;

/// Messages waiting in one direction of a stream.
const QUEUE_LEN: usize = 1;

/// Streams open at one time; each costs an HTTP/2 stream and a task.
pub const STREAMS_MAX: usize = 4096;

/// A stream that was taken.
#[derive(Debug)]
pub struct Stream {
    incoming: mpsc::Receiver<Result<BytesAny>>,
    outgoing: mpsc::Sender<Result<BytesAny, Status>>,
}

impl Stream {
    /// The next message of the client; None once it has closed its side.
    ///
    /// # Errors
    /// The status the call ended with, when the client has gone away or broke the protocol.
    pub async fn recv(&mut self) -> Option<Result<BytesAny>> {
        self.incoming.recv().await
    }

    /// Sends a message to the client; waits while it does not read.
    ///
    /// # Errors
    /// Unavailable when the client has gone away.
    pub async fn send(&self, message: BytesAny) -> Result<()> {
        self.outgoing
            .send(Ok(message))
            .await
            .map_err(|_| Error::unavailable("stream: the client has closed it"))
    }

    /// Splits the two directions, for those who read and write at once.
    pub fn split(self) -> (StreamReceiver, StreamSender) {
        (StreamReceiver { incoming: self.incoming }, StreamSender { outgoing: self.outgoing })
    }
}

/// The reading half of a stream.
#[derive(Debug)]
pub struct StreamReceiver {
    incoming: mpsc::Receiver<Result<BytesAny>>,
}

impl StreamReceiver {
    /// As [`Stream::recv`].
    ///
    /// # Errors
    /// As [`Stream::recv`].
    pub async fn recv(&mut self) -> Option<Result<BytesAny>> {
        self.incoming.recv().await
    }
}

/// The writing half of a stream; the client's call ends when it is dropped.
#[derive(Clone, Debug)]
pub struct StreamSender {
    outgoing: mpsc::Sender<Result<BytesAny, Status>>,
}

impl StreamSender {
    /// As [`Stream::send`].
    ///
    /// # Errors
    /// As [`Stream::send`].
    pub async fn send(&self, message: BytesAny) -> Result<()> {
        self.outgoing
            .send(Ok(message))
            .await
            .map_err(|_| Error::unavailable("stream: the client has closed it"))
    }
}

/// The streams clients have open. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    all: Arc<All>,
}

#[derive(Debug, Default)]
struct All(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// Number of the last one.
    last: u64,
}

#[derive(Debug)]
struct Entry {
    /// Until it is taken.
    stream: Option<Stream>,
    number: u64,
    lease: Option<String>,
    /// Ends the client's call.
    end: oneshot::Sender<()>,
}

type Key = (Namespace, String);

impl Streams {
    /// Has the collector of `db` end streams whose lease has gone, until the last clone is dropped.
    pub fn start(&self, db: &Db) {
        let all: Weak<dyn Members> = Arc::<All>::downgrade(&self.all);
        db.gc().look_after(MemberKind::Stream, all);
    }

    /// Takes the stream `id`.
    ///
    /// # Errors
    /// NotFound when no client has it open, FailedPrecondition when it was taken before.
    pub fn take(&self, namespace: &Namespace, id: &str) -> Result<Stream> {
        match self.all.lock().entries.get_mut(&(namespace.clone(), id.to_owned())) {
            None => Err(Error::not_found(format!("stream {id:?}"))),
            Some(entry) => entry.stream.take().ok_or_else(|| {
                Error::failed_precondition(format!("stream {id:?}: in use by another call"))
            }),
        }
    }

    fn insert(&self, ctx: Context, id: String, stream: Stream) -> Result<Open> {
        let mut table = self.all.lock();
        if table.entries.len() >= STREAMS_MAX {
            return Err(Error::resource_exhausted(format!("streams: {STREAMS_MAX} is the limit")));
        }
        let key = (ctx.namespace, id);
        if table.entries.contains_key(&key) {
            // Clients know this one as Unknown.
            return Err(Error::unknown(format!("stream {:?}: already exists", key.1)));
        }
        table.last += 1;
        let (end, ended) = oneshot::channel();
        let (number, lease) = (table.last, ctx.lease);
        table.entries.insert(key.clone(), Entry { stream: Some(stream), number, lease, end });
        Ok(Open { streams: self.clone(), key, number, ended })
    }
}

impl All {
    fn remove(&self, key: &Key, number: u64) -> Option<Entry> {
        let mut table = self.lock();
        table.entries.get(key).is_some_and(|entry| entry.number == number).then_some(())?;
        table.entries.remove(key)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Members for All {
    fn list(&self) -> Vec<Member> {
        let member = |((namespace, name), entry): (&Key, &Entry)| Member {
            namespace: namespace.clone(),
            name: name.clone(),
            number: entry.number,
            lease: entry.lease.clone(),
            labels: Labels::new(),
        };
        self.lock().entries.iter().map(member).collect()
    }

    async fn remove(&self, member: &Member) -> Result<()> {
        let key = (member.namespace.clone(), member.name.clone());
        if let Some(entry) = All::remove(self, &key, member.number) {
            // The client may have gone just now.
            let _ = entry.end.send(());
        }
        Ok(())
    }
}

/// An entry of [`Streams`]; gone when the client's call ends.
#[derive(Debug)]
struct Open {
    streams: Streams,
    key: Key,
    number: u64,
    /// Resolves when the stream is ended from our side.
    ended: oneshot::Receiver<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.all.remove(&self.key, self.number);
    }
}

/// Opens streams for clients.
#[derive(Clone, Debug)]
pub struct StreamingService {
    streams: Streams,
    db: Db,
}

impl StreamingService {
    /// A service that puts streams into `streams`. Their leases are in `db`.
    pub fn new(streams: Streams, db: Db) -> Self {
        Self { streams, db }
    }
}

/// The server's side of one call: messages for the client, and what the call holds.
#[derive(Debug)]
pub struct Outgoing {
    messages: ReceiverStream<Result<BytesAny, Status>>,
    open: Open,
}

impl futures_util::Stream for Outgoing {
    type Item = Result<BytesAny, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if Pin::new(&mut self.open.ended).poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.messages).poll_next(cx)
    }
}

#[tonic::async_trait]
impl Streaming for StreamingService {
    type StreamStream = Outgoing;

    async fn stream(
        &self,
        request: Request<tonic::Streaming<BytesAny>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let ctx = call::context(&request)?;
        self.db.leases().check(&ctx)?;
        let mut client = request.into_inner();
        let first = client
            .message()
            .await?
            .ok_or_else(|| Error::invalid_argument("stream: closed before it was named"))?;
        let init: StreamInit = first.unpack()?.ok_or_else(|| {
            Error::invalid_argument(format!("stream: expect StreamInit, got {:?}", first.type_url))
        })?;
        let (to_client, messages) = mpsc::channel(QUEUE_LEN);
        let (to_taker, incoming) = mpsc::channel(QUEUE_LEN);
        // The answer that tells the client that the name is registered goes first.
        let accepted = BytesAny::new("google.protobuf.Empty".to_owned(), Bytes::new());
        to_client.try_send(Ok(accepted)).map_err(|_| Error::internal("stream: new queue full"))?;
        let stream = Stream { incoming, outgoing: to_client };
        let open = self.streams.insert(ctx, init.id, stream)?;
        // Ends with the call: its request stream does, and nobody holds the other end then.
        tokio::spawn(async move {
            while let Some(message) = client.message().await.map_err(Error::from).transpose() {
                let last = message.is_err();
                if to_taker.send(message).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Response::new(Outgoing { messages: ReceiverStream::new(messages), open }))
    }
}
