//! Where calls go: to the daemon, or to services the program brought itself.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, TryFutureExt as _};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Request = http::Request<Body>;
type Answer = http::Response<Body>;
type Injected = BoxCloneSyncService<Request, Answer, BoxError>;

/// The way of every call. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Transport {
    /// None for a client without a daemon.
    channel: Option<Channel>,
    /// Services of the program's own, by their full names.
    injected: Arc<BTreeMap<&'static str, Injected>>,
}

impl Transport {
    /// Every call goes over `channel`; without one, only injected services answer.
    pub(crate) fn new(channel: Option<Channel>) -> Self {
        Self { channel, injected: Arc::default() }
    }

    /// The same with calls to `service` answered by it.
    pub(crate) fn with<S>(&self, service: S) -> Self
    where
        S: Service<Request, Response = Answer, Error = Infallible> + NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let mut injected = BTreeMap::clone(&self.injected);
        let boxed = BoxCloneSyncService::new(service.map_err(|never| match never {}));
        injected.insert(S::NAME, boxed);
        Self { channel: self.channel.clone(), injected: Arc::new(injected) }
    }
}

impl Service<Request> for Transport {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Which of the services must be ready is known with the request.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let service = request.uri().path().trim_start_matches('/').split('/').next();
        let service = service.unwrap_or_default();
        if let Some(own) = self.injected.get(service) {
            return own.clone().oneshot(request).boxed();
        }
        match &self.channel {
            Some(channel) => channel.clone().oneshot(request).map_err(Into::into).boxed(),
            None => {
                let why = format!("service {service}: this client has no daemon");
                let answer = tonic::Status::unimplemented(why).into_http();
                async move { Ok(answer) }.boxed()
            }
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("daemon", &self.channel.is_some())
            .field("injected", &self.injected.keys())
            .finish()
    }
}
