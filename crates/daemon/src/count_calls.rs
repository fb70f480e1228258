//! Counts calls and their messages for the metrics listener.
//!
//! Only a daemon that has such a listener does: without one, calls pass through as they are.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use gantry_services::{Call, Calls, Messages};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Wraps services in [`CountCalls`].
#[derive(Clone, Debug)]
pub(crate) struct CountCallsLayer(pub(crate) Option<Calls>);

impl<S> Layer<S> for CountCallsLayer {
    type Service = CountCalls<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountCalls { inner, calls: self.0.clone() }
    }
}

/// Counts the calls of a service.
#[derive(Clone, Debug)]
pub(crate) struct CountCalls<S> {
    inner: S,
    calls: Option<Calls>,
}

/// Both directions of a call count into it.
type Shared = Arc<Mutex<Call>>;

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for CountCalls<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer<S::Error> {
        let call = self.calls.as_ref().and_then(|calls| calls.begin(request.uri().path()));
        let Some(call) = call else { return Box::pin(self.inner.call(request)) };
        let call = Arc::new(Mutex::new(call));
        let request = request.map(|body| {
            let received = |call: &Call, count| call.received(count);
            Body::new(Counted::new(body, Arc::clone(&call), received, false))
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // An answer of a status alone has it in its head.
            if let Some(status) = Status::from_header_map(response.headers()) {
                end(&call, status.code());
            }
            let sent = |call: &Call, count| call.sent(count);
            Ok(response.map(|body| Body::new(Counted::new(body, call, sent, true))))
        })
    }
}

fn end(call: &Shared, code: Code) {
    call.lock().unwrap_or_else(PoisonError::into_inner).end(code);
}

/// A body whose messages are counted.
struct Counted {
    inner: Body,
    call: Shared,
    messages: Messages,
    count: fn(&Call, u64),
    /// It is an answer, with the status behind it.
    is_answer: bool,
}

impl Counted {
    fn new(inner: Body, call: Shared, count: fn(&Call, u64), is_answer: bool) -> Self {
        Self { inner, call, messages: Messages::default(), count, is_answer }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let this = &mut *self;
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let count = this.messages.begin_in(data);
                    if count > 0 {
                        let call = this.call.lock().unwrap_or_else(PoisonError::into_inner);
                        (this.count)(&call, count);
                    }
                }
                let trailers = frame.trailers_ref().filter(|_| this.is_answer);
                if let Some(status) = trailers.and_then(Status::from_header_map) {
                    end(&this.call, status.code());
                }
            }
            Some(Err(status)) if this.is_answer => end(&this.call, status.code()),
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
