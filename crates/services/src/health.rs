//! `grpc.health.v1`: one service, "", that serves from the first answer to the last.

use futures_util::stream;
use gantry_api::grpc::health::v1::health_check_response::ServingStatus;
use gantry_api::grpc::health::v1::health_server::Health;
use gantry_api::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::stream::Answers;

/// Tells whether the daemon serves.
#[derive(Debug)]
pub struct HealthService {
    serving: watch::Receiver<bool>,
}

impl HealthService {
    /// A service that tells what `serving` holds.
    pub fn new(serving: watch::Receiver<bool>) -> Self {
        Self { serving }
    }
}

fn answer(serving: bool) -> HealthCheckResponse {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(*self.serving.borrow())))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !request.get_ref().service.is_empty() {
            // The protocol wants an answer here, not an error: the service may appear later.
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            let forever =
                futures_util::StreamExt::chain(stream::iter([Ok(unknown)]), stream::pending());
            return Ok(Response::new(Box::pin(forever)));
        }
        let mut serving = self.serving.clone();
        serving.mark_changed();
        let changes = stream::unfold(serving, |mut serving| async move {
            serving.changed().await.ok()?;
            let now = *serving.borrow_and_update();
            Some((Ok(answer(now)), serving))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
