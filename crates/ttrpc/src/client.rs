//! Calling a server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use gantry_errdefs::{Error, Result, ResultExt};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use crate::frame::{
    self, DATA, FrameReader, Header, Incoming, NO_DATA, Outgoing, REMOTE_CLOSED, REMOTE_OPEN,
    REQUEST, RESPONSE,
};
use crate::message::{Request, Response};
use crate::stream::{self, Feed, Item, Stream};
use crate::writer::Writer;
use crate::{Address, Context};

/// One connection to a server. Clones share it; it closes with the last of them.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    writer: Writer,
    /// Closes when the reader ends.
    alive: watch::Receiver<()>,
    reader: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What callers share with the reader of the connection.
#[derive(Debug)]
struct Shared {
    /// A std mutex: it is held for a map access and never across an await.
    pending: Mutex<Pending>,
}

#[derive(Debug)]
struct Pending {
    /// The id of the next stream: odd, and never used twice.
    next: u32,
    waiting: HashMap<u32, Waiter>,
    /// Set once the connection has died.
    dead: bool,
}

#[derive(Debug)]
enum Waiter {
    Call(oneshot::Sender<Result<Bytes>>),
    Stream(Feed),
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Connects to the server at `address` (see [`Address`] for its forms).
    ///
    /// # Errors
    /// InvalidArgument or Unimplemented for an address we cannot use, Unavailable when nobody
    /// listens there.
    pub fn connect(address: &str) -> Result<Self> {
        let address: Address = address.parse()?;
        let stream = UnixStream::from_std(address.connect()?)
            .map_err(|e| Error::unavailable(format!("connect to {address}: {e}")).with_source(e))?;
        Ok(Self::new(stream))
    }

    /// Calls over `socket`. Must be called within a tokio runtime.
    pub fn new<S>(socket: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(socket);
        let (writer, _) = Writer::spawn(write);
        let pending = Pending { next: 1, waiting: HashMap::new(), dead: false };
        let shared = Arc::new(Shared { pending: Mutex::new(pending) });
        let (guard, alive) = watch::channel(());
        let reader = tokio::spawn({
            let shared = Arc::clone(&shared);
            let writer = writer.clone();
            let end = End { shared: Arc::clone(&shared), _guard: guard };
            async move {
                tokio::select! {
                    () = read_answers(FrameReader::new(read), &shared) => {}
                    () = writer.closed() => {}
                }
                drop(end);
            }
        });
        let reader = reader.abort_handle();
        Self { inner: Arc::new(Inner { shared, writer, alive, reader }) }
    }

    /// Calls a method with one message each way.
    ///
    /// Dropping the future gives up on the answer; the server is not told.
    ///
    /// # Errors
    /// What the server answered; DeadlineExceeded after `ctx.timeout`; Unavailable when the
    /// connection died; ResourceExhausted when the request is larger than a frame; Internal when
    /// the answer cannot be decoded.
    pub async fn call<Req, Res>(
        &self,
        service: &str,
        method: &str,
        request: &Req,
        ctx: &Context,
    ) -> Result<Res>
    where
        Req: Message,
        Res: Message + Default,
    {
        let payload = self.call_raw(service, method, request.encode_to_vec(), ctx).await?;
        Res::decode(payload).map_err(|e| {
            Error::internal(format!("/{service}/{method}: answer: {e}")).with_source(e)
        })
    }

    /// [`Client::call`] for bytes that are encoded already.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_raw(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        ctx: &Context,
    ) -> Result<Bytes> {
        let request = Request::new(service, method, payload, ctx);
        let frame = Outgoing::message(0, REQUEST, 0, &request)
            .context(|| format!("/{service}/{method}"))?;
        let exchange = self.exchange(frame);
        let Some(timeout) = ctx.timeout else {
            return exchange.await;
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            Err(Error::deadline_exceeded(format!(
                "/{service}/{method}: no answer within {timeout:?}"
            )))
        })
    }

    /// Opens a method with a stream on either side. `first` is the request of a method whose
    /// requests are not streamed; none leaves our side open for messages.
    ///
    /// # Errors
    /// ResourceExhausted when the request is larger than a frame, Unavailable when the
    /// connection died. The server's own refusal comes from [`Stream::receive`].
    pub async fn stream(
        &self,
        service: &str,
        method: &str,
        first: Option<Vec<u8>>,
        ctx: &Context,
    ) -> Result<Stream> {
        let flags = if first.is_some() { REMOTE_CLOSED } else { REMOTE_OPEN };
        let request = Request::new(service, method, first.unwrap_or_default(), ctx);
        let frame = Outgoing::message(0, REQUEST, flags, &request)?;
        let (mut stream, feed) = Stream::new(0, self.inner.writer.clone());
        let id = self.open(frame, Waiter::Stream(feed)).await?;
        stream.set_id(id);
        Ok(stream)
    }

    /// Whether the connection has died. False is only a snapshot.
    pub fn is_closed(&self) -> bool {
        self.inner.shared.pending().dead
    }

    /// Ends the connection for all clones: their calls fail with Unavailable.
    pub fn close(&self) {
        self.inner.reader.abort();
    }

    /// Resolves when the connection has died.
    pub async fn closed(&self) {
        let mut alive = self.inner.alive.clone();
        // Nothing is ever sent: an error says that the reader has ended.
        while alive.changed().await.is_ok() {}
    }

    async fn exchange(&self, frame: Outgoing) -> Result<Bytes> {
        let (answer, answered) = oneshot::channel();
        let id = self.open(frame, Waiter::Call(answer)).await?;
        let _forget = Forget { shared: &self.inner.shared, id };
        answered.await.unwrap_or_else(|_| Err(dead()))
    }

    /// Gives `frame` the next stream id and sends it. Servers insist that ids arrive in order,
    /// so the id is taken only when there is room to send, under one lock with the sending.
    async fn open(&self, mut frame: Outgoing, waiter: Waiter) -> Result<u32> {
        let slot = self.inner.writer.reserve().await?;
        let mut pending = self.inner.shared.pending();
        if pending.dead {
            return Err(dead());
        }
        let id = pending.next;
        pending.next = id
            .checked_add(2)
            .ok_or_else(|| Error::unavailable("ttrpc connection: all stream ids are used up"))?;
        frame.set_stream(id);
        pending.waiting.insert(id, waiter);
        slot.send(frame);
        Ok(id)
    }
}

fn dead() -> Error {
    Error::unavailable("ttrpc connection closed")
}

/// Takes a call off the list when its caller no longer waits.
struct Forget<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.pending().waiting.remove(&self.id);
    }
}

/// Fails everything that waits once the reader ends, also when it is aborted.
struct End {
    shared: Arc<Shared>,
    _guard: watch::Sender<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        let waiting = {
            let mut pending = self.shared.pending();
            pending.dead = true;
            std::mem::take(&mut pending.waiting)
        };
        // Dropping the senders tells every caller.
        drop(waiting);
    }
}

async fn read_answers<R: AsyncRead + Unpin>(mut frames: FrameReader<R>, shared: &Shared) {
    loop {
        match frames.next().await {
            Ok(Some(Incoming::Frame(header, payload))) => answer(shared, header, payload).await,
            Ok(Some(Incoming::Oversized(header))) => {
                let err = frame::too_large(header.length as usize);
                finish(shared, header.stream, Err(err)).await;
            }
            Ok(None) => return,
            Err(err) => {
                tracing::debug!(%err, "ttrpc: read");
                return;
            }
        }
    }
}

async fn answer(shared: &Shared, header: Header, payload: Bytes) {
    match header.kind {
        RESPONSE => {
            let result = Response::decode(payload)
                .map_err(|e| Error::internal(format!("ttrpc answer: {e}")).with_source(e))
                .and_then(Response::into_result);
            finish(shared, header.stream, result).await;
        }
        DATA => {
            let feed = match shared.pending().waiting.get(&header.stream) {
                Some(Waiter::Stream(feed)) => feed.clone(),
                _ => return,
            };
            let has_data = header.flags & NO_DATA == 0;
            let closes = header.flags & REMOTE_CLOSED != 0;
            let mut fed = Ok(());
            if has_data {
                fed = stream::feed(&feed, Item::Data(payload)).await;
            }
            if fed.is_ok() && closes {
                fed = stream::feed(&feed, Item::End(Ok(None))).await;
            }
            if closes || fed.is_err() {
                shared.pending().waiting.remove(&header.stream);
            }
        }
        kind => tracing::debug!(kind, "ttrpc: frame of an unknown kind"),
    }
}

/// Ends a call or a stream. Answers nobody waits for (their time was over) are dropped.
async fn finish(shared: &Shared, id: u32, result: Result<Bytes>) {
    let waiter = shared.pending().waiting.remove(&id);
    match waiter {
        // The caller may have left this very moment.
        Some(Waiter::Call(call)) => drop(call.send(result)),
        Some(Waiter::Stream(feed)) => {
            if let Err(err) = stream::feed(&feed, Item::End(result.map(Some))).await {
                tracing::debug!(%err, "ttrpc: end of a stream");
            }
        }
        None => {}
    }
}
