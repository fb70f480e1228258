//! Work that may hang in the kernel: unmounting, writing to files.
//!
//! A thread for each piece of work, gone with it: at rest there is one thread. Not tokio's pool,
//! which panics when the system has no thread left; here the work is done in place then.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Such a thread calls the kernel and little else.
const STACK_BYTES: usize = 256 * 1024;

/// Runs `work` where it holds up nobody but the caller.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // Shared, so that the work is still here when there is no thread for it.
    let slot = Arc::new(Mutex::new(Some(work)));
    let take = |slot: &Mutex<Option<_>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (tell, done) = oneshot::channel();
    let theirs = slot.clone();
    let started = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        if let Some(work) = take(&theirs) {
            // Nobody waits any more when the caller was dropped.
            let _ = tell.send(work());
        }
    });
    if started.is_ok()
        && let Ok(value) = done.await
    {
        return value;
    }
    let work = take(&slot).expect("no thread has taken it, or it panicked and so do we");
    work()
}

#[cfg(test)]
mod tests {
    #[test]
    fn work_is_done_elsewhere() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let here = std::thread::current().id();
        let there = runtime.block_on(super::run(|| std::thread::current().id()));
        assert_ne!(here, there);
    }
}
