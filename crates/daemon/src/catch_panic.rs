//! A panic in one request ends that request, not the daemon.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Wraps services in [`CatchPanic`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CatchPanicLayer;

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic { inner }
    }
}

/// Answers Internal when the handler of a request panics. State behind a poisoned lock is the
/// nouns' concern: they use locks only around plain data.
#[derive(Clone, Debug)]
pub(crate) struct CatchPanic<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for CatchPanic<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            answer.await.unwrap_or_else(|panic| {
                let what = text_of(panic.as_ref());
                tracing::error!(%path, panic = what, "a request handler panicked");
                Ok(Status::internal(format!("{path}: {what}: internal")).into_http())
            })
        })
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_answer() {
        let handler = tower::service_fn(|request: http::Request<()>| async move {
            assert!(request.uri().path() != "/panics", "as asked");
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let mut service = CatchPanicLayer.layer(handler);
        let ask = |path: &str| http::Request::builder().uri(path).body(()).unwrap();
        let fine = service.call(ask("/works")).await.unwrap();
        assert!(fine.headers().get("grpc-status").is_none());
        let caught = service.call(ask("/panics")).await.unwrap();
        let status = Status::from_header_map(caught.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(status.message().contains("as asked"), "{status:?}");
    }
}
