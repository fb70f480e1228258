//! Small files made by a second thread.
//!
//! A file costs a handful of calls, most of whose time goes to the file system's own bookkeeping,
//! and a layer of many small files keeps one thread busy with them while others wait for work. So
//! files whose names are known to be free are handed to a second thread; what it has no room for is
//! made by the first, as it would have been.
//!
//! A file handed over is there for nobody before it is made: whoever looks at a name, takes one or
//! removes a tree waits first ([`Making::wait_for`], [`Making::wait`]).

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use gantry_errdefs::{Error, Result};

use super::{attributes, create, failed, name_entry, write_failed};
use crate::entry::Entry;

/// Largest file handed over: its content is copied, and larger ones cost more than their making.
pub(crate) const FILE_BYTES_MAX: u64 = 64 << 10;

/// Files that may wait. With [`FILE_BYTES_MAX`] this bounds the memory.
const WAITING_MAX: usize = 32;

/// Files a layer makes before a thread is worth its start. The layers of tests are small, and shall
/// be made so as well.
const FILES_BEFORE_THREAD: usize = if cfg!(debug_assertions) { 1 } else { 64 };

/// A file to be made, with all it takes.
#[derive(Debug)]
pub(super) struct Job {
    /// The directory.
    pub(super) dir: Arc<OwnedFd>,
    /// The name in it.
    pub(super) name: Vec<u8>,
    /// The resolved path.
    pub(super) path: PathBuf,
    /// What the layer says of it.
    pub(super) entry: Entry,
    /// Its content.
    pub(super) data: Vec<u8>,
}

impl Job {
    /// Makes the file.
    ///
    /// # Errors
    /// The file system's. The name is free, unless the file system takes two names for one.
    pub(super) fn run(&self) -> Result<()> {
        let made = create(&self.dir, &self.name, &self.entry);
        let made = made.map_err(|e| failed("create", &self.path, e))?;
        let mut file = File::from(made);
        file.write_all(&self.data).map_err(|e| write_failed(&self.path, e))?;
        attributes(&self.entry, Some(&self.entry)).set_on_fd(file.as_fd(), &self.path)
    }
}

/// The files of one layer that a second thread makes.
#[derive(Debug, Default)]
pub(crate) struct Making {
    thread: RefCell<Option<(SyncSender<Job>, JoinHandle<()>)>>,
    shared: Arc<Shared>,
    /// Paths handed over since nobody was busy.
    handed_over: RefCell<HashSet<PathBuf>>,
    /// Files offered before there was a thread.
    offered: Cell<usize>,
    /// See [`Making::allow`] and [`Making::forbid`].
    allowed: Cell<bool>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Files handed over and not made.
    under_way: usize,
    failed: Option<Error>,
    /// Nobody wants what is left.
    stopped: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Making {
    /// Files may be handed over: every name of the tree is one that the layer itself has written, so
    /// all others are known to be free.
    pub(crate) fn allow(&self) {
        self.allowed.set(true);
    }

    /// No more files may be: something came into the tree that the layer did not name.
    pub(crate) fn forbid(&self) {
        self.allowed.set(false);
    }

    /// Whether a file of the layer may be handed over.
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        self.allowed.get() && entry.sparse.is_none() && entry.size <= FILE_BYTES_MAX
    }

    /// Has a file made by the other thread, or makes it where that has enough to do.
    ///
    /// # Errors
    /// That of this file, or of an earlier one.
    pub(super) fn make(&self, job: Job) -> Result<()> {
        self.offered.set(self.offered.get() + 1);
        if self.offered.get() < FILES_BEFORE_THREAD {
            return job.run();
        }
        let mut thread = self.thread.borrow_mut();
        if thread.is_none() {
            *thread = self.start();
        }
        let Some((sender, _)) = &*thread else {
            self.forbid();
            return job.run();
        };
        let mut handed_over = self.handed_over.borrow_mut();
        {
            let mut state = self.shared.state();
            if let Some(err) = state.failed.take() {
                return Err(err);
            }
            if state.under_way == 0 {
                handed_over.clear();
            }
            state.under_way += 1;
        }
        let path = job.path.clone();
        match sender.try_send(job) {
            Ok(()) => {
                handed_over.insert(path);
                Ok(())
            }
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                self.shared.state().under_way -= 1;
                job.run()
            }
        }
    }

    /// Starts the other thread; None where there is no core for it, or none to be had.
    fn start(&self) -> Option<(SyncSender<Job>, JoinHandle<()>)> {
        if !std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
            return None;
        }
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name("unpack".to_owned());
        let handle = builder.spawn(move || make_all(&receiver, &shared)).ok()?;
        Some((sender, handle))
    }

    /// Waits until `path`, if it was handed over, is made.
    ///
    /// # Errors
    /// As [`Making::wait`].
    pub(crate) fn wait_for(&self, path: impl FnOnce() -> PathBuf) -> Result<()> {
        let waits = {
            let handed_over = self.handed_over.borrow();
            !handed_over.is_empty() && handed_over.contains(&path())
        };
        if waits { self.wait() } else { Ok(()) }
    }

    /// Waits until all that was handed over is made.
    ///
    /// # Errors
    /// That of the first file that could not be made.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut state = self.shared.state();
        while state.under_way > 0 {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.handed_over.borrow_mut().clear();
        state.failed.take().map_or(Ok(()), Err)
    }
}

impl Drop for Making {
    /// The tree is the caller's to remove once the layer has failed: nothing may be made in it then.
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        if let Some((sender, handle)) = self.thread.get_mut().take() {
            drop(sender);
            let _ended = handle.join();
        }
    }
}

fn make_all(jobs: &Receiver<Job>, shared: &Shared) {
    while let Ok(job) = jobs.recv() {
        let wanted = {
            let state = shared.state();
            !state.stopped && state.failed.is_none()
        };
        // Whoever waits must not wait for ever.
        let made = match wanted {
            true => catch_unwind(AssertUnwindSafe(|| job.run()))
                .unwrap_or_else(|_| Err(Error::internal("making a file panicked"))),
            false => Ok(()),
        };
        let mut state = shared.state();
        state.under_way -= 1;
        if let Err(err) = made {
            state.failed.get_or_insert(name_entry(&job.entry, err));
        }
        if state.under_way == 0 {
            shared.idle.notify_all();
        }
    }
}
