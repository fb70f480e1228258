//! Calls that make something, whole even when their caller goes away.
//!
//! A future may be dropped at any await. If that is while the daemon makes something, nobody
//! knows whether it was made, and nobody owns it. So such work runs on its own, to its end; what
//! it made and nobody took is undone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

/// How long a call waits for an earlier one on the same object to be finished or undone: longer
/// than a shim may take for either.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// The objects that are being made, or unmade because nobody took them. Shared by a client's
/// clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unsettled {
    objects: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

/// One object that is being made; settled when this is dropped.
#[derive(Debug)]
pub(crate) struct Mark {
    objects: Arc<watch::Sender<BTreeMap<String, usize>>>,
    name: String,
}

impl Unsettled {
    /// Notes that `name` is being made.
    pub(crate) fn begin(&self, name: String) -> Mark {
        self.objects.send_modify(|all| *all.entry(name.clone()).or_default() += 1);
        Mark { objects: self.objects.clone(), name }
    }

    /// Waits until nothing is under way on `name`.
    pub(crate) async fn settled(&self, name: &str) {
        let mut objects = self.objects.subscribe();
        let settled = objects.wait_for(|all| !all.contains_key(name));
        // After that long the daemon's own answer says more than waiting on.
        let _ = tokio::time::timeout(SETTLE_MAX, settled).await;
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.objects.send_modify(|all| {
            if let Some(count) = all.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    all.remove(&self.name);
                }
            }
        });
    }
}

/// Runs `work` to its end. If the returned future is dropped before it has given the result,
/// `undo` gets what was made.
pub(crate) async fn make_or_undo<T, W, U, F>(work: W, undo: U) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
    U: FnOnce(T) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    make_or_undo_marked(None, work, undo).await
}

/// As [`make_or_undo`]; what is made is unsettled until it is kept or undone.
pub(crate) async fn make_or_undo_marked<T, W, U, F>(
    mark: Option<Mark>,
    work: W,
    undo: U,
) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
    U: FnOnce(T) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (give, take) = oneshot::channel();
    let handle = Handle::current();
    handle.clone().spawn(async move {
        let made = work.await;
        let made = made.map(|made| Made { parts: Some((made, undo, mark)), handle });
        // Given back when nobody listens; dropping it undoes.
        drop(give.send(made));
    });
    match take.await {
        Ok(made) => made.map(Made::keep),
        Err(_) => Err(Error::canceled("client: the runtime is shutting down")),
    }
}

/// Runs `work` to its end, whether or not the caller waits for it.
pub(crate) async fn to_its_end<T, W>(work: W) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
{
    make_or_undo(work, |_| async {}).await
}

/// Something that was made, undone unless it is kept.
struct Made<T, U, F>
where
    T: Send + 'static,
    U: FnOnce(T) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    parts: Option<(T, U, Option<Mark>)>,
    handle: Handle,
}

impl<T, U, F> Made<T, U, F>
where
    T: Send + 'static,
    U: FnOnce(T) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn keep(mut self) -> T {
        self.parts.take().expect("taken here only").0
    }
}

impl<T, U, F> Drop for Made<T, U, F>
where
    T: Send + 'static,
    U: FnOnce(T) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn drop(&mut self) {
        if let Some((made, undo, mark)) = self.parts.take() {
            self.handle.spawn(async move {
                undo(made).await;
                drop(mark);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt as _;

    use super::*;

    /// Starts work that a second of patience sees the end of, and drops its future after `polls`.
    async fn cancelled_after(polls: usize) -> bool {
        let undone = Arc::new(AtomicBool::new(false));
        let mark = undone.clone();
        let (go, started) = oneshot::channel::<()>();
        let work = async move {
            let _ = started.await;
            Ok(7)
        };
        let undo = move |made| async move {
            assert_eq!(made, 7);
            mark.store(true, Ordering::SeqCst);
        };
        let mut call = Box::pin(make_or_undo(work, undo));
        for _ in 0..polls {
            assert!((&mut call).now_or_never().is_none());
        }
        let _ = go.send(());
        drop(call);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        undone.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn what_nobody_takes_is_undone() {
        // Not even begun.
        assert!(!cancelled_after(0).await);
        assert!(cancelled_after(1).await);
        assert!(cancelled_after(2).await);
    }

    #[tokio::test]
    async fn what_was_given_but_not_taken_is_undone() {
        let undone = Arc::new(AtomicBool::new(false));
        let mark = undone.clone();
        let undo = move |_| async move { mark.store(true, Ordering::SeqCst) };
        let mut call = Box::pin(make_or_undo(async { Ok(()) }, undo));
        assert!((&mut call).now_or_never().is_none());
        // The work ends and its result lies in the channel.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(call);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(undone.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn what_was_taken_stays() {
        let undo = |_| async { panic!("it was taken") };
        assert_eq!(make_or_undo(async { Ok(3) }, undo).await.unwrap(), 3);
        let failure = make_or_undo(async { Err(Error::not_found("x")) }, |(): ()| async {}).await;
        assert!(failure.unwrap_err().is_not_found());
    }
}
