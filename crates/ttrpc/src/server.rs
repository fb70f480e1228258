//! Serving calls.

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gantry_errdefs::{Error, Result};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::frame::{
    self, DATA, FrameReader, Header, Incoming, NO_DATA, Outgoing, REMOTE_CLOSED, REQUEST, RESPONSE,
};
use crate::handover::{Carried, Handover, Line, Registered};
use crate::message::{Request, Response};
use crate::stream::{self, Feed, Item, Stream};
use crate::writer::Writer;
use crate::{Context, Service};

/// Connections served at a time; more wait in the socket's backlog. A shim has the daemon, the
/// one before it while it restarts, and a person's tool; a daemon, which has every shim, says
/// another number ([`ServerBuilder::connections_max`]).
const CONNECTIONS_MAX: usize = 256;

/// Calls that run at a time on one connection, of which most are waits for an exit. Beyond it
/// the answer is ResourceExhausted.
const CALLS_PER_CONNECTION_MAX: usize = 1024;

/// How long calls may go on after their connection was half-closed or the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How long to wait before accepting again when the system has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Serves a fixed set of services. Clones share it.
#[derive(Clone)]
pub struct Server {
    services: Arc<HashMap<&'static str, Arc<dyn Service>>>,
    connections_max: usize,
    handover: Option<Handover>,
}

/// Collects the services of a [`Server`].
pub struct ServerBuilder {
    services: HashMap<&'static str, Arc<dyn Service>>,
    connections_max: usize,
    handover: Option<Handover>,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self { services: HashMap::new(), connections_max: CONNECTIONS_MAX, handover: None }
    }
}

impl ServerBuilder {
    /// Serves at most `count` connections at a time; more wait in the socket's backlog.
    #[must_use]
    pub fn connections_max(mut self, count: usize) -> Self {
        self.connections_max = count;
        self
    }

    /// Adds a service; one of the same name is replaced.
    #[must_use]
    pub fn service(mut self, service: impl Service) -> Self {
        self.services.insert(service.name(), Arc::new(service));
        self
    }

    /// Keeps what `handover` needs of the connections of [`Server::serve`].
    #[must_use]
    pub fn handover(mut self, handover: Handover) -> Self {
        self.handover = Some(handover);
        self
    }

    /// The server.
    pub fn build(self) -> Server {
        let Self { services, connections_max, handover } = self;
        Server { services: Arc::new(services), connections_max, handover }
    }
}

impl Server {
    /// Starts with no services.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// Accepts and serves connections until `stop` resolves; then no more are accepted, running
    /// calls have two seconds to answer, and all connections close.
    pub async fn serve(&self, listener: UnixListener, stop: impl Future<Output = ()>) {
        self.serve_on(listener, Vec::new(), stop).await;
    }

    /// As [`Server::serve`], going on with the connections of the program before this one.
    pub async fn serve_on(
        &self,
        listener: UnixListener,
        carried: Vec<Carried>,
        stop: impl Future<Output = ()>,
    ) {
        let (stopping, stopped) = watch::channel(());
        let room = Arc::new(Semaphore::new(self.connections_max));
        let mut connections = JoinSet::new();
        for Carried { socket, input } in carried {
            let socket = std::os::unix::net::UnixStream::from(socket);
            match socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket)) {
                Ok(socket) => self.spawn(&mut connections, socket, input, None, &stopped),
                Err(err) => tracing::warn!(%err, "ttrpc: a connection of the last program"),
            }
        }
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = accept(&listener, &room) => accepted,
                // Ended connections leave the set, so that it does not grow.
                Some(_) = connections.join_next() => continue,
            };
            let (socket, room) = accepted;
            self.spawn(&mut connections, socket, Vec::new(), Some(room), &stopped);
        }
        drop(listener);
        drop(stopping);
        while connections.join_next().await.is_some() {}
    }

    fn spawn(
        &self,
        connections: &mut JoinSet<()>,
        socket: UnixStream,
        input: Vec<u8>,
        room: Option<OwnedSemaphorePermit>,
        stopped: &watch::Receiver<()>,
    ) {
        let registered = self.handover.as_ref().and_then(|handover| {
            let copy = socket.as_fd().try_clone_to_owned();
            copy.map(|copy| handover.add(copy)).ok()
        });
        let (server, stopped) = (self.clone(), stopped.clone());
        connections.spawn(async move {
            let _room = room;
            server.run(socket, &input, registered, stopped).await;
        });
    }

    /// Serves one connection to its end.
    pub async fn serve_connection<S>(&self, socket: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (_running, stopped) = watch::channel(());
        self.run(socket, &[], None, stopped).await;
    }

    async fn run<S>(
        &self,
        socket: S,
        input: &[u8],
        handover: Option<Registered>,
        mut stopped: watch::Receiver<()>,
    ) where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(socket);
        let (writer, writing) = Writer::spawn_on(write, handover.as_ref().map(Registered::line));
        let (alive, connection) = watch::channel(());
        let mut frames = FrameReader::resume(read, input);
        let mut calls = Connection {
            services: Arc::clone(&self.services),
            handover,
            writer: writer.clone(),
            connection,
            room: Arc::new(Semaphore::new(CALLS_PER_CONNECTION_MAX)),
            streams: HashMap::new(),
            last: 0,
        };
        loop {
            let incoming = tokio::select! {
                incoming = frames.next() => incoming,
                () = writer.closed() => break,
                _ = stopped.changed() => break,
                () = calls.held() => {
                    tokio::select! {
                        () = calls.park(frames.rest()) => continue,
                        () = writer.closed() => break,
                        _ = stopped.changed() => break,
                    }
                }
            };
            let incoming = match incoming {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break,
                Err(err) => {
                    tracing::debug!(%err, "ttrpc: read");
                    break;
                }
            };
            tokio::select! {
                () = calls.handle(incoming) => {}
                () = writer.closed() => break,
                _ = stopped.changed() => break,
            }
        }
        // At the end of the input the peer may still read answers; when the server stops, or
        // nothing can be written, handlers that wait for this connection should end now.
        let half_closed = stopped.has_changed().is_ok() && !writer.is_closed();
        let alive = half_closed.then_some(alive);
        calls.drain(&writer).await;
        drop((alive, writer));
        // What was answered is written out, unless the peer does not read.
        let abort = writing.abort_handle();
        if tokio::time::timeout(DRAIN_MAX, writing).await.is_err() {
            tracing::debug!("ttrpc: the peer does not read its answers");
            abort.abort();
        }
    }
}

async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> (tokio::net::UnixStream, OwnedSemaphorePermit) {
    let permit = Arc::clone(room).acquire_owned().await.expect("never closed");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return (socket, permit),
            Err(err) => {
                tracing::warn!(%err, "ttrpc: accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// The calls of one connection.
struct Connection {
    services: Arc<HashMap<&'static str, Arc<dyn Service>>>,
    handover: Option<Registered>,
    writer: Writer,
    /// Handed to handlers, which learn from it that the connection is gone.
    connection: watch::Receiver<()>,
    room: Arc<Semaphore>,
    /// Streams whose client side is open.
    streams: HashMap<u32, Feed>,
    /// The highest stream id so far; ids only grow.
    last: u32,
}

impl Connection {
    /// Resolves when nothing more is to be read.
    async fn held(&self) {
        match &self.handover {
            Some(handover) => handover.held().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until reading may go on.
    async fn park(&self, rest: Option<&[u8]>) {
        if let Some(handover) = &self.handover {
            handover.park(rest).await;
        }
    }

    async fn handle(&mut self, incoming: Incoming) {
        let (header, payload) = match incoming {
            Incoming::Frame(header, payload) => (header, payload),
            Incoming::Oversized(header) => {
                let err = frame::too_large(header.length as usize);
                return self.refuse(header.stream, &err).await;
            }
        };
        match header.kind {
            REQUEST => {
                if let Err(err) = self.request(header, payload) {
                    self.refuse(header.stream, &err).await;
                }
            }
            DATA => self.data(header, payload).await,
            kind => tracing::debug!(kind, "ttrpc: frame of an unknown kind"),
        }
    }

    fn request(&mut self, header: Header, payload: Bytes) -> Result<()> {
        let id = header.stream;
        if id.is_multiple_of(2) {
            return Err(Error::invalid_argument(format!("stream id {id}: a client's is odd")));
        }
        if id <= self.last {
            return Err(Error::invalid_argument(format!("stream id {id}: used already")));
        }
        self.last = id;
        let raw = payload.clone();
        let request = Request::decode(payload)
            .map_err(|e| Error::invalid_argument(format!("request: {e}")).with_source(e))?;
        let Some(service) = self.services.get(request.service.as_str()) else {
            return Err(crate::unimplemented(&request.service, &request.method));
        };
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            Error::resource_exhausted(format!(
                "connection: {CALLS_PER_CONNECTION_MAX} calls are running"
            ))
        })?;
        let timeout = request.timeout();
        let ctx = Context {
            timeout,
            metadata: request.metadata.into_iter().map(|p| (p.key, p.value)).collect(),
            connection: Some(self.connection.clone()),
        };
        let line = self.handover.as_ref().map(Registered::line);
        let answer = Answer { writer: Some(self.writer.clone()), line, id, _room: room };
        let open = service.stream(&request.method, &ctx);
        if let Some(handover) = &self.handover {
            let target = (request.service.as_str(), request.method.as_str());
            handover.called(header, &raw, open.is_none().then_some(target));
        }
        if let Some(open) = open {
            let (stream, feed) = Stream::new(id, self.writer.clone());
            if !request.payload.is_empty() {
                // The queue is empty and has room for the first message.
                let _ = feed.try_send(Item::Data(request.payload));
            }
            if header.flags & REMOTE_CLOSED != 0 {
                let _ = feed.try_send(Item::End(Ok(None)));
            } else {
                // Streams whose handler has ended while the client's side was open.
                self.streams.retain(|_, feed| !feed.is_closed());
                self.streams.insert(id, feed);
            }
            let finish = open(stream);
            tokio::spawn(async move { answer.end_stream(finish.await).await });
        } else {
            let reply = service.call(&request.method, ctx, request.payload);
            tokio::spawn(async move { answer.send(reply.await).await });
        }
        Ok(())
    }

    async fn data(&mut self, header: Header, payload: Bytes) {
        let Some(feed) = self.streams.get(&header.stream) else {
            // The stream may have ended on our side while this was on its way.
            return;
        };
        let mut fed = Ok(());
        if header.flags & NO_DATA == 0 && !(payload.is_empty() && header.flags != 0) {
            fed = stream::feed(feed, Item::Data(payload)).await;
        }
        let closes = header.flags & REMOTE_CLOSED != 0;
        if fed.is_ok() && closes {
            fed = stream::feed(feed, Item::End(Ok(None))).await;
        }
        if closes || fed.is_err() {
            self.streams.remove(&header.stream);
        }
        if let Err(err) = fed {
            tracing::debug!(%err, "ttrpc: stream given up");
        }
    }

    async fn refuse(&self, id: u32, err: &Error) {
        let frame = Outgoing::message(id, RESPONSE, 0, &Response::err(err))
            .expect("an error text is small");
        if let Some(handover) = &self.handover {
            handover.line().answering(id);
        }
        // A connection that is gone ends in the loop above.
        let _ = self.writer.send(frame).await;
    }

    /// Lets running calls finish after the last frame came in: the peer may have closed its
    /// side only and still read.
    async fn drain(mut self, writer: &Writer) {
        self.streams.clear();
        let all = u32::try_from(CALLS_PER_CONNECTION_MAX).expect("small");
        let idle = self.room.acquire_many(all);
        tokio::select! {
            _ = idle => {}
            () = writer.closed() => {}
            () = tokio::time::sleep(DRAIN_MAX) => {
                tracing::debug!("ttrpc: calls left running at the end of a connection");
            }
        }
    }
}

/// Sends the answer of one call; a handler that panics is answered for.
struct Answer {
    writer: Option<Writer>,
    line: Option<Arc<Line>>,
    id: u32,
    _room: OwnedSemaphorePermit,
}

impl Answer {
    /// Ends a stream; without a last message it is closed by flags alone, as clients read an
    /// answer as one message more.
    async fn end_stream(mut self, result: Result<Option<Vec<u8>>>) {
        match result.transpose() {
            Some(last) => self.send(last).await,
            None => {
                let Some(writer) = self.writer.take() else { return };
                self.answering();
                let _ = writer.send(Outgoing::flags(self.id, REMOTE_CLOSED | NO_DATA)).await;
            }
        }
    }

    async fn send(mut self, result: Result<Vec<u8>>) {
        let response = match result {
            Ok(payload) => Response::ok(payload),
            Err(err) => Response::err(&err),
        };
        let frame = Outgoing::message(self.id, RESPONSE, 0, &response).or_else(|err| {
            Outgoing::message(self.id, RESPONSE, 0, &Response::err(&err.context("answer")))
        });
        let Some(writer) = self.writer.take() else { return };
        self.answering();
        if let Ok(frame) = frame {
            // A caller that is gone needs no answer.
            let _ = writer.send(frame).await;
        }
    }
}

impl Answer {
    fn answering(&self) {
        if let Some(line) = &self.line {
            line.answering(self.id);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        self.answering();
        let response = Response::err(&Error::internal("handler: panicked"));
        if let Ok(frame) = Outgoing::message(self.id, RESPONSE, 0, &response) {
            writer.send_now(frame);
        }
    }
}
