//! Credentials that the client is asked for when a registry wants them.

use std::time::Duration;

use gantry_api::containerd::types::transfer as wire;
use gantry_api::{BytesAny, Payload as _};
use gantry_errdefs::{Error, Result};
use gantry_registry::{AuthRequest, Credential, Credentials};
use tokio::sync::Mutex;

use crate::streaming::Stream;

/// How long the client may take; it may have to ask a helper or a person.
const ANSWER_WAIT_MAX: Duration = gantry_core::deadlines::CLIENT_AUTH;

/// Asks over a stream, one question at a time.
#[derive(Debug)]
pub(super) struct StreamCredentials {
    /// Held over question and answer: they are matched by their order.
    stream: Mutex<Stream>,
}

impl StreamCredentials {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream: Mutex::new(stream) }
    }
}

#[tonic::async_trait]
impl Credentials for StreamCredentials {
    async fn get(&self, request: &AuthRequest) -> Result<Option<Credential>> {
        let question = BytesAny::pack(&wire::AuthRequest {
            host: request.host.clone(),
            reference: request.reference.clone(),
            wwwauthenticate: request.challenges.clone(),
        });
        let asking = async {
            let mut stream = self.stream.lock().await;
            stream.send(question).await?;
            stream.recv().await.transpose()
        };
        let answer = tokio::time::timeout(ANSWER_WAIT_MAX, asking).await.map_err(|_| {
            Error::deadline_exceeded(format!("credentials for {}: no answer", request.host))
        })??;
        let Some(answer) = answer else { return Ok(None) };
        let answer: wire::AuthResponse = answer.unpack()?.ok_or_else(|| {
            Error::invalid_argument(format!(
                "credentials for {}: expect AuthResponse, got {:?}",
                request.host, answer.type_url
            ))
        })?;
        Ok(match answer.auth_type() {
            wire::AuthType::None => None,
            wire::AuthType::Credentials => {
                Some(Credential::Basic { username: answer.username, secret: answer.secret })
            }
            wire::AuthType::Refresh => Some(Credential::RefreshToken(answer.secret)),
            wire::AuthType::Header => Some(Credential::Header(answer.secret)),
        })
    }
}
