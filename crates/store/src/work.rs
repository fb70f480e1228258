//! The store trait and the path of a write: a typed closure, boxed, run, answered.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use gantry_errdefs::{Error, Result};
use tokio::sync::oneshot;

use crate::read::{KvRead, Snapshot};
use crate::txn::{Hook, Txn, Writes};

/// A key-value database. Callers use [`StoreExt::update`]; implementations take [`Job`]s.
pub trait Store: Send + Sync + 'static {
    /// The state after the last commit.
    ///
    /// # Errors
    /// DataLoss or Unavailable when the database can't be read.
    fn view(&self) -> Result<Snapshot>;

    /// Queues a write, waiting while the queue is full. The job answers its caller itself.
    fn submit(&self, job: Job) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// As [`Store::submit`], for callers outside async code.
    fn submit_blocking(&self, job: Job);
}

tokio::task_local! {
    static RELAXED: bool;
}

/// Runs `work`, whose updates are visible when they resolve but durable only with the next update
/// made outside: for a caller that ends in such an update itself, and before that has told nobody.
/// One synced commit then serves both.
///
/// Tasks spawned by `work` are outside unless they use [`carry`].
pub async fn relaxed<T>(work: impl Future<Output = T>) -> T {
    RELAXED.scope(true, work).await
}

/// Runs `work` outside any [`relaxed`]: its updates are durable when they resolve.
pub async fn strict<T>(work: impl Future<Output = T>) -> T {
    RELAXED.scope(false, work).await
}

/// Takes the caller's being inside [`relaxed`], or not, along into a task to be spawned.
pub fn carry<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    RELAXED.scope(is_relaxed(), work)
}

fn is_relaxed() -> bool {
    RELAXED.try_with(|relaxed| *relaxed).unwrap_or(false)
}

/// Typed writes on any [`Store`].
pub trait StoreExt: Store {
    /// Runs `write` in a transaction of its own and resolves once its commit is durable.
    ///
    /// Dropping the future does not take the write back once it is queued. `write` runs on the
    /// writer thread: memory and the transaction only.
    ///
    /// # Errors
    /// What `write` returned; Internal when it panicked; Unavailable or DataLoss when the commit
    /// failed.
    fn update<T, F>(&self, write: F) -> impl Future<Output = Result<T>> + Send
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        async move {
            let (job, answer) = Job::new(write, is_relaxed());
            self.submit(job).await;
            answer.await.unwrap_or_else(|_| Err(closed()))
        }
    }

    /// As [`StoreExt::update`], for callers outside async code. It must not be called on an async
    /// worker thread.
    ///
    /// # Errors
    /// As [`StoreExt::update`].
    fn update_blocking<T, F>(&self, write: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        let (job, answer) = Job::new(write, false);
        self.submit_blocking(job);
        answer.blocking_recv().unwrap_or_else(|_| Err(closed()))
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

/// One queued write with its caller's answer slot.
pub struct Job {
    work: Box<dyn Work>,
    relaxed: bool,
}

impl Job {
    fn new<T, F>(write: F, relaxed: bool) -> (Self, oneshot::Receiver<Result<T>>)
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work = Box::new(Typed { write: Some(write), result: None, answer });
        (Self { work, relaxed }, answered)
    }

    /// Whether the caller waits for durability.
    pub(crate) fn is_strict(&self) -> bool {
        !self.relaxed
    }

    /// Runs the closure over `base`. `Some` holds the writes to merge and the hooks to run after
    /// the commit; `None` means that the closure failed and nothing of it may be kept.
    pub(crate) fn run(&mut self, base: &dyn KvRead) -> Option<(Writes, Vec<Hook>)> {
        let mut txn = Txn::new(base);
        self.work.run(&mut txn).then(|| txn.into_parts())
    }

    /// Answers the caller: the closure's own result, or `failure` of the commit.
    pub(crate) fn finish(self, failure: Option<Error>) {
        self.work.finish(failure);
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// Runs a hook; a panic in one is reported and harms nobody else.
pub(crate) fn run_hooks(hooks: Vec<Hook>) {
    for hook in hooks {
        if catch_unwind(AssertUnwindSafe(hook)).is_err() {
            tracing::error!("an after-commit hook panicked");
        }
    }
}

trait Work: Send {
    /// Whether the closure returned `Ok`.
    fn run(&mut self, txn: &mut Txn<'_>) -> bool;
    fn finish(self: Box<Self>, failure: Option<Error>);
}

struct Typed<T, F> {
    write: Option<F>,
    result: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, F> Work for Typed<T, F>
where
    T: Send,
    F: FnOnce(&mut Txn<'_>) -> Result<T> + Send,
{
    fn run(&mut self, txn: &mut Txn<'_>) -> bool {
        let Some(write) = self.write.take() else { return false };
        let result = catch_unwind(AssertUnwindSafe(|| write(txn)))
            .unwrap_or_else(|panic| Err(Error::internal(panic_text(panic.as_ref()))));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn finish(self: Box<Self>, failure: Option<Error>) {
        let result = match (self.result, failure) {
            (Some(Err(own)), _) => Err(own),
            (_, Some(failure)) => Err(failure),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => Err(Error::internal("database write was answered before it ran")),
        };
        // The caller may have gone; its write stands all the same.
        let _ = self.answer.send(result);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let what = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    format!("database transaction panicked: {what}")
}

fn closed() -> Error {
    Error::unavailable("database is closed")
}
