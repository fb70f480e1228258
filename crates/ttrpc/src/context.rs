//! What travels beside a request.

use std::time::Duration;

use tokio::sync::watch;

/// The deadline and the key/value pairs of one call.
///
/// A caller fills it in; a handler receives what the caller sent, and can wait for [`done`].
///
/// [`done`]: Context::done
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// How long the caller waits; none means as long as the connection lives.
    pub timeout: Option<Duration>,
    /// Pairs in the order they were sent; a key may occur more than once.
    pub metadata: Vec<(String, String)>,
    /// Set on the serving side: closes when the connection does.
    pub(crate) connection: Option<watch::Receiver<()>>,
}

impl Context {
    /// No deadline, no pairs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits at most `timeout` for the answer.
    pub fn with_timeout(timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..Self::default() }
    }

    /// Adds a pair.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// The first value sent under `key`, whatever the case of its letters.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.as_str())
    }

    /// Resolves when nobody waits for the answer any more: the caller's time is over or the
    /// connection is gone. Handlers are never cancelled from outside; one that waits for
    /// something without an end of its own selects on this.
    pub async fn done(&self) {
        let expired = async {
            match self.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let disconnected = async {
            match self.connection.clone() {
                // Nothing is ever sent: an error says that the sender is gone.
                Some(mut connection) => while connection.changed().await.is_ok() {},
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expired => {}
            () = disconnected => {}
        }
    }
}
