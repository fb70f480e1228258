//! How far a transfer is, told to whoever wants to know without ever waiting for them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use gantry_core::Descriptor;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

/// Most updates that wait for the receiver. There is at most one per object (a newer one replaces
/// it), so this is reached only by images with thousands of layers; the oldest goes then.
pub const PENDING_UPDATES_MAX: usize = 4096;

/// How often the bytes of one object are told at most: often enough for a smooth bar.
pub(crate) const BYTES_INTERVAL: Duration = Duration::from_millis(100);

/// What happens to an object, or to the transfer as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Something to show about the whole transfer: `Resolving from ...`.
    Message(String),
    /// The content of the image `name` is being fetched.
    FetchingContent,
    /// The content of the image `name` is being pushed.
    PushingContent,
    /// In the queue.
    Waiting,
    /// Bytes come in.
    Downloading,
    /// Bytes go out.
    Uploading,
    /// It was there already.
    Exists,
    /// All its bytes are there.
    Complete,
    /// It is being unpacked.
    Extracting,
    /// It is unpacked.
    Extracted,
    /// An archive is read.
    Importing,
    /// It is written to an archive.
    Exporting,
    /// The image `name` is in the image store.
    Saved,
}

impl Stage {
    /// The text clients know the stage by (`Progress.event` of the transfer service).
    pub fn event(&self) -> &str {
        match self {
            Self::Message(text) => text,
            Self::FetchingContent => "fetching image content",
            Self::PushingContent => "pushing content",
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Uploading => "uploading",
            Self::Exists => "already exists",
            Self::Complete => "complete",
            Self::Extracting => "extracting",
            Self::Extracted => "extracted",
            Self::Importing => "importing",
            Self::Exporting => "exporting",
            Self::Saved => "saved",
        }
    }
}

/// One update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What happens.
    pub stage: Stage,
    /// The object: `layer-sha256:...`, an image name, or empty for the whole transfer.
    pub name: String,
    /// The objects it belongs to.
    pub parents: Vec<String>,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 when unknown.
    pub total: u64,
    /// The object's descriptor, if it has one.
    pub descriptor: Option<Descriptor>,
}

impl Progress {
    /// A message about the whole transfer.
    pub fn message(text: impl Into<String>) -> Self {
        Self::named(Stage::Message(text.into()), "")
    }

    /// An update on something without bytes.
    pub fn named(stage: Stage, name: impl Into<String>) -> Self {
        let name = name.into();
        Self { stage, name, parents: Vec::new(), done: 0, total: 0, descriptor: None }
    }
}

/// Makes a connected pair. The receiver ends when every clone of the sink is gone.
pub fn progress_channel() -> (ProgressSink, ProgressReceiver) {
    let shared = Arc::new(Shared::default());
    let sender = Arc::new(Sender(shared.clone()));
    (ProgressSink(Some(sender)), ProgressReceiver(shared))
}

/// Where a transfer reports to. Never blocks: updates that were not read yet are replaced by
/// newer ones of the same object. The default reports to nobody.
#[derive(Clone, Debug, Default)]
pub struct ProgressSink(Option<Arc<Sender>>);

impl ProgressSink {
    /// Reports an update.
    pub fn send(&self, progress: Progress) {
        let Some(sender) = &self.0 else { return };
        let mut state = sender.0.lock();
        let same = |p: &&mut Progress| !p.name.is_empty() && p.name == progress.name;
        match state.pending.iter_mut().rev().find(same) {
            Some(older) => *older = progress,
            None => {
                if state.pending.len() >= PENDING_UPDATES_MAX {
                    state.pending.pop_front();
                }
                state.pending.push_back(progress);
            }
        }
        drop(state);
        sender.0.ready.notify_one();
    }

    /// Reports a message about the whole transfer.
    pub fn message(&self, text: impl Into<String>) {
        if self.0.is_some() {
            self.send(Progress::message(text));
        }
    }
}

/// The reading end; see [`progress_channel`].
#[derive(Debug)]
pub struct ProgressReceiver(Arc<Shared>);

impl ProgressReceiver {
    /// The next update, or None when the transfer is over and everything was read.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            {
                let mut state = self.0.lock();
                if let Some(progress) = state.pending.pop_front() {
                    return Some(progress);
                }
                if state.closed {
                    return None;
                }
            }
            // A notice given between the look and this is kept for us.
            self.0.ready.notified().await;
        }
    }
}

#[derive(Debug)]
struct Sender(Arc<Shared>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.ready.notify_one();
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Held for moments only, never across an await.
    state: Mutex<State>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Progress>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One object of a transfer as it reports: name and parents said once.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    sink: ProgressSink,
    descriptor: Descriptor,
    name: String,
    parents: Vec<String>,
    told: Option<Instant>,
}

impl Reporter {
    pub(crate) fn new(sink: &ProgressSink, descriptor: &Descriptor, parents: &[String]) -> Self {
        Self {
            sink: sink.clone(),
            descriptor: descriptor.clone(),
            name: crate::content::ref_key(descriptor),
            parents: parents.to_vec(),
            told: None,
        }
    }

    /// Reports a stage that is all done or not begun.
    pub(crate) fn stage(&self, stage: Stage) {
        let total = u64::try_from(self.descriptor.size).unwrap_or(0);
        let done = if stage == Stage::Waiting { 0 } else { total };
        self.report(stage, done, total);
    }

    /// Reports bytes, if it is not too soon.
    pub(crate) fn bytes(&mut self, stage: Stage, done: u64) {
        let soon = self.told.is_some_and(|at| at.elapsed() < BYTES_INTERVAL);
        if !soon {
            self.told = Some(Instant::now());
            self.report(stage, done, u64::try_from(self.descriptor.size).unwrap_or(0));
        }
    }

    fn report(&self, stage: Stage, done: u64, total: u64) {
        if self.sink.0.is_some() {
            self.sink.send(Progress {
                stage,
                name: self.name.clone(),
                parents: self.parents.clone(),
                done,
                total,
                descriptor: Some(self.descriptor.clone()),
            });
        }
    }
}

/// Reports the bytes that pass through a reader, of which nobody knows how many there will be.
#[derive(Debug)]
pub(crate) struct Counted<R> {
    inner: R,
    sink: ProgressSink,
    stage: Stage,
    name: String,
    done: u64,
    told: Option<Instant>,
}

impl<R> Counted<R> {
    pub(crate) fn new(inner: R, sink: ProgressSink, stage: Stage, name: &str) -> Self {
        Self { inner, sink, stage, name: name.to_owned(), done: 0, told: None }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        if read > 0 {
            self.done += read as u64;
            if self.told.is_none_or(|at| at.elapsed() >= BYTES_INTERVAL) {
                self.told = Some(Instant::now());
                let update = Progress::named(self.stage.clone(), self.name.clone());
                self.sink.send(Progress { done: self.done, ..update });
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &str, done: u64) -> Progress {
        Progress { done, ..Progress::named(Stage::Downloading, name) }
    }

    #[tokio::test]
    async fn newer_replaces_older_and_messages_stay() {
        let (sink, mut receiver) = progress_channel();
        sink.message("one");
        sink.send(update("a", 1));
        sink.message("two");
        sink.send(update("a", 2));
        sink.send(update("b", 1));
        drop(sink);
        let mut seen = Vec::new();
        while let Some(p) = receiver.next().await {
            seen.push((p.stage.event().to_owned(), p.name, p.done));
        }
        let want =
            [("one", "", 0), ("downloading", "a", 2), ("two", "", 0), ("downloading", "b", 1)];
        assert_eq!(seen, want.map(|(e, n, d)| (e.to_owned(), n.to_owned(), d)));
    }

    #[tokio::test]
    async fn a_reader_that_sleeps_costs_little() {
        let (sink, mut receiver) = progress_channel();
        for i in 0..2 * PENDING_UPDATES_MAX {
            sink.send(update(&i.to_string(), 0));
        }
        assert_eq!(receiver.next().await.unwrap().name, PENDING_UPDATES_MAX.to_string());
        ProgressSink::default().send(update("nobody", 0));
    }

    #[tokio::test]
    async fn wakes_a_waiting_reader() {
        let (sink, mut receiver) = progress_channel();
        let reader = tokio::spawn(async move { receiver.next().await });
        tokio::task::yield_now().await;
        sink.send(update("a", 1));
        assert_eq!(reader.await.unwrap().unwrap().name, "a");
    }
}
