//! One call of Wait per process, however many wait for it.
//!
//! ttrpc has no way to take a call back: one that nobody waits for any more keeps its place among
//! the calls of the connection until the process ends, and a shim takes only so many. Clients come
//! and go for as long as a container lives, so they share one call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_api::containerd::task::v2::WaitResponse;
use gantry_errdefs::{Error, Result};
use tokio::sync::watch;

/// How a shared call ended; None while it has not.
type Outcome = Option<std::result::Result<WaitResponse, Arc<Error>>>;

/// The calls under way, by exec id (empty for the task itself).
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(Arc<Mutex<HashMap<String, watch::Receiver<Outcome>>>>);

impl Waits {
    /// Waits with everyone else who waits for `exec`; the first one's `call` is made, and goes on
    /// without him.
    ///
    /// # Errors
    /// What the call returned.
    pub(crate) async fn join<F>(&self, exec: &str, call: F) -> Result<WaitResponse>
    where
        F: Future<Output = Result<WaitResponse>> + Send + 'static,
    {
        let mut outcome = self.under_way(exec, call);
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(answer))) => Ok(*answer),
            Ok(Some(Err(err))) => {
                Err(Error::new(err.class(), err.message()).with_source(Arc::clone(err)))
            }
            // Its sender went without a word: the runtime it ran on is ending.
            Ok(None) | Err(_) => Err(Error::unavailable("wait: the daemon is stopping")),
        }
    }

    /// Has the next to wait for `exec` make a call of his own: the name is given to another
    /// process.
    pub(crate) fn forget(&self, exec: &str) {
        self.calls().remove(exec);
    }

    fn under_way<F>(&self, exec: &str, call: F) -> watch::Receiver<Outcome>
    where
        F: Future<Output = Result<WaitResponse>> + Send + 'static,
    {
        let mut calls = self.calls();
        if let Some(outcome) = calls.get(exec) {
            return outcome.clone();
        }
        let (tell, outcome) = watch::channel(None);
        calls.insert(exec.to_owned(), outcome.clone());
        let (all, exec, own) = (self.clone(), exec.to_owned(), outcome.clone());
        tokio::spawn(async move {
            let ended = call.await;
            // Whoever comes after the answer asks anew.
            let mut calls = all.calls();
            if calls.get(&exec).is_some_and(|listed| listed.same_channel(&own)) {
                calls.remove(&exec);
            }
            drop(calls);
            tell.send_replace(Some(ended.map_err(Arc::new)));
        });
        outcome
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Outcome>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn answer(exit_status: u32) -> WaitResponse {
        WaitResponse { exit_status, exited_at: None }
    }

    #[tokio::test]
    async fn all_share_one_call_that_outlives_the_first() {
        let waits = Waits::default();
        let (end, ended) = oneshot::channel();
        let first = waits.join("e", async move { ended.await.expect("told") });
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(5), first).await;
        given_up.expect_err("nothing has ended");
        let never = async { unreachable!("a call is under way") };
        let second = waits.join("e", never);
        end.send(Ok(answer(3))).expect("someone listens");
        assert_eq!(second.await.expect("an answer").exit_status, 3);
        let anew = waits.join("e", async { Err(Error::not_found("e")) });
        assert!(anew.await.expect_err("gone").is_not_found());
    }

    #[tokio::test]
    async fn a_name_that_is_given_again_has_a_call_of_its_own() {
        let waits = Waits::default();
        let stuck = waits.join("e", std::future::pending());
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(5), stuck).await;
        given_up.expect_err("it never ends");
        waits.forget("e");
        let fresh = waits.join("e", async { Ok(answer(0)) });
        assert_eq!(fresh.await.expect("an answer").exit_status, 0);
    }
}
