//! Handing the connections of a server to the program that takes its process over by exec.
//!
//! A socket outlives an exec; what is lost is what the program has read and not answered. So a
//! server with a [`Handover`] keeps the requests it has not answered as they came. To hand over:
//! [`Handover::hold`], wait until [`Handover::is_quiet`], then [`Handover::carried`] tells for each
//! connection its socket and the bytes that the next program has to read first: the requests
//! without an answer, and what came in after them. Peers notice nothing.
//!
//! Quiet is a server whose running calls may all be made again ([`Handover::new`]), as a wait for
//! something may, and whose answers are written out.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::frame::{Header, Outgoing};

/// Whether a method of a service may be called again by the next program.
pub type Repeats = fn(service: &str, method: &str) -> bool;

/// See the module's text. Clones share everything.
#[derive(Clone)]
pub struct Handover {
    inner: Arc<Inner>,
}

struct Inner {
    repeats: Repeats,
    held: watch::Sender<bool>,
    lines: Mutex<BTreeMap<u64, Arc<Line>>>,
    next: AtomicU64,
    changed: Arc<Notify>,
}

/// A connection for the next program.
#[derive(Debug)]
pub struct Carried {
    /// Its socket.
    pub socket: OwnedFd,
    /// What has been read of it and is to be read again.
    pub input: Vec<u8>,
}

/// One connection of the server.
pub(crate) struct Line {
    socket: OwnedFd,
    state: Mutex<State>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// What came in and was not looked at; set while nothing is read.
    parked: Option<Vec<u8>>,
    calls: BTreeMap<u32, Call>,
}

/// A call from its request until its answer is written.
struct Call {
    frame: Vec<u8>,
    repeats: bool,
    answered: bool,
}

impl Handover {
    /// For a server whose calls of which `repeats` is true may be made again.
    pub fn new(repeats: Repeats) -> Self {
        let inner = Inner {
            repeats,
            held: watch::Sender::new(false),
            lines: Mutex::default(),
            next: AtomicU64::new(0),
            changed: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Has every connection stop reading; calls that run go on.
    pub fn hold(&self) {
        self.inner.held.send_replace(true);
    }

    /// Has every connection read again.
    pub fn release(&self) {
        self.inner.held.send_replace(false);
    }

    /// Whether nothing is read, and every call that runs may be made again.
    pub fn is_quiet(&self) -> bool {
        self.lines().values().all(|line| line.is_quiet())
    }

    /// Resolves when [`Handover::is_quiet`] may have become true since this was called.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// The connections of a server that is quiet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn carried(&self) -> std::io::Result<Vec<Carried>> {
        self.lines().values().map(|line| line.carried()).collect()
    }

    pub(crate) fn add(&self, socket: OwnedFd) -> Registered {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let changed = Arc::clone(&self.inner.changed);
        let line = Arc::new(Line { socket, state: Mutex::default(), changed });
        self.lines().insert(id, Arc::clone(&line));
        Registered { handover: self.clone(), id, line }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Line>>> {
        self.inner.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place with its handover, given up when dropped.
pub(crate) struct Registered {
    handover: Handover,
    id: u64,
    line: Arc<Line>,
}

impl Registered {
    pub(crate) fn line(&self) -> Arc<Line> {
        Arc::clone(&self.line)
    }

    /// Resolves when nothing more is to be read.
    pub(crate) async fn held(&self) {
        let mut held = self.handover.inner.held.subscribe();
        // The sender lives as long as `self`.
        let _ = held.wait_for(|held| *held).await;
    }

    /// Keeps `input`, which was read and not looked at, until reading goes on. None: that cannot
    /// be told, and the connection cannot be handed over.
    pub(crate) async fn park(&self, input: Option<&[u8]>) {
        self.line.state().parked = input.map(<[u8]>::to_owned);
        self.line.changed.notify_one();
        let mut held = self.handover.inner.held.subscribe();
        // As above.
        let _ = held.wait_for(|held| !*held).await;
        self.line.state().parked = None;
    }

    /// A request came in.
    pub(crate) fn called(&self, header: Header, payload: &[u8], target: Option<(&str, &str)>) {
        let repeats = target.is_some_and(|(service, method)| {
            let repeats = self.handover.inner.repeats;
            repeats(service, method)
        });
        // What cannot be made again need not be kept.
        let frame = if repeats { header.with(payload) } else { Vec::new() };
        let call = Call { frame, repeats, answered: false };
        self.line.state().calls.insert(header.stream, call);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.handover.lines().remove(&self.id);
        self.line.changed.notify_one();
    }
}

impl Line {
    /// An answer is about to be queued.
    pub(crate) fn answering(&self, stream: u32) {
        let mut state = self.state();
        let unknown = || Call { frame: Vec::new(), repeats: false, answered: true };
        state.calls.entry(stream).or_insert_with(unknown).answered = true;
    }

    /// A frame was written.
    pub(crate) fn written(&self, frame: &Outgoing) {
        if frame.is_last() {
            self.state().calls.remove(&frame.stream());
            self.changed.notify_one();
        }
    }

    fn is_quiet(&self) -> bool {
        let state = self.state();
        state.parked.is_some() && state.calls.values().all(|call| call.repeats && !call.answered)
    }

    fn carried(&self) -> std::io::Result<Carried> {
        let state = self.state();
        let mut input: Vec<u8> = state.calls.values().flat_map(|call| call.frame.clone()).collect();
        input.extend_from_slice(state.parked.as_deref().unwrap_or_default());
        Ok(Carried { socket: self.socket.try_clone()?, input })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
