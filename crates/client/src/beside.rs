//! What a transfer by the daemon asks and tells about a registry meanwhile.

use gantry_api::containerd::types::transfer as wire;
use gantry_api::{BytesAny, Payload as _};
use gantry_registry::HttpLog;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::local::may_know;
use crate::streams::MessageStream;
use crate::transfer::Credentials;

/// Bytes of the daemon's log that wait to be shown.
const LOG_QUEUED_BYTES: usize = 64 << 10;

/// The streams that belong to one registry of a transfer.
pub(crate) struct Beside {
    pub(crate) auth: Option<Auth>,
    pub(crate) log: Option<Log>,
}

/// The stream on which lines about requests come.
pub(crate) struct Log {
    pub(crate) stream: MessageStream,
    pub(crate) to: HttpLog,
}

impl Log {
    /// Hands every line on, until the daemon ends the stream.
    pub(crate) async fn follow(self) {
        let (read, mut write) = tokio::io::duplex(LOG_QUEUED_BYTES);
        let receive = async move {
            // Why it ends is told by the transfer itself.
            let _ = self.stream.receive_bytes(&mut write).await;
        };
        let show = async {
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                self.to.line(line);
            }
        };
        tokio::join!(receive, show);
    }
}

/// The stream on which a registry's question for credentials comes.
pub(crate) struct Auth {
    pub(crate) stream: MessageStream,
    pub(crate) credentials: Credentials,
    /// Who alone gets them.
    pub(crate) host: Option<String>,
}

impl Auth {
    /// Answers every question; never returns.
    pub(crate) async fn serve(mut self) {
        while let Ok(Some(message)) = self.stream.receive().await {
            let Ok(Some(asked)) = message.unpack::<wire::AuthRequest>() else { continue };
            let kind = if !may_know(self.host.as_deref(), &asked.host) {
                wire::AuthType::None
            } else if self.credentials.username.is_empty() {
                wire::AuthType::Refresh
            } else {
                wire::AuthType::Credentials
            };
            let mut answer =
                wire::AuthResponse { auth_type: kind.into(), ..wire::AuthResponse::default() };
            if kind != wire::AuthType::None {
                answer.secret.clone_from(&self.credentials.secret);
                answer.username.clone_from(&self.credentials.username);
            }
            if self.stream.send(BytesAny::pack(&answer)).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }
}
