//! What a connection has written: for answers that must have reached the client's socket before
//! something else is done.

use std::sync::Arc;

use gantry_events::HANDOVER_MAX;
use tokio::sync::watch;

/// Counts how often everything that a connection had to send was written. The connection carries it
/// into each request's extensions.
#[derive(Clone, Debug)]
pub struct Flushes(Arc<watch::Sender<u64>>);

impl Default for Flushes {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Flushes {
    /// Everything has been written.
    pub fn written(&self) {
        if self.0.receiver_count() > 0 {
            self.0.send_modify(|count| *count += 1);
        }
    }

    /// Drops `held` when all that is to be sent now has been written, or with the connection, or
    /// after the time that anybody waits for it.
    pub(crate) fn hold_until_written<T: Send + 'static>(&self, held: T) {
        let mut written = self.0.subscribe();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(HANDOVER_MAX, written.changed()).await;
            drop(held);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_goes_with_the_next_write() {
        let flushes = Flushes::default();
        flushes.written();
        let (held, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        flushes.hold_until_written(held);
        tokio::task::yield_now().await;
        assert!(gone.try_recv().is_err_and(|e| e == tokio::sync::mpsc::error::TryRecvError::Empty));
        flushes.written();
        assert!(gone.recv().await.is_none());
    }
}
