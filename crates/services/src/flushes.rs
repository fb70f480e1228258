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

    /// Calls `done` when all that is to be sent now has been written; with false when the
    /// connection ends before, or after the time that anybody waits for it.
    pub(crate) fn when_written(&self, done: impl FnOnce(bool) + Send + 'static) {
        let mut written = self.0.subscribe();
        tokio::spawn(async move {
            let ended = tokio::time::timeout(HANDOVER_MAX, written.changed()).await;
            done(matches!(ended, Ok(Ok(()))));
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn waiting(flushes: &Flushes) -> oneshot::Receiver<bool> {
        let (send, receive) = oneshot::channel();
        flushes.when_written(move |written| {
            let _ = send.send(written);
        });
        receive
    }

    #[tokio::test]
    async fn what_waits_is_done_with_the_next_write() {
        let flushes = Flushes::default();
        flushes.written();
        let mut first = waiting(&flushes);
        tokio::task::yield_now().await;
        assert!(first.try_recv().is_err(), "not by an earlier write");
        flushes.written();
        assert_eq!(first.await, Ok(true));
        let second = waiting(&flushes);
        drop(flushes);
        assert_eq!(second.await, Ok(false), "the connection is gone");
    }
}
