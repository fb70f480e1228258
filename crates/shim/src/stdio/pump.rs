//! Copying between descriptors while data flows.
//!
//! At rest a pump is a registered descriptor and a small task; its buffer lives only from the
//! moment there is something to read until there is no more. It can be held ([`Pump::hold`]): then
//! it stops between two bytes, and what it has read and not written is kept.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use gantry_errdefs::{Result, ResultExt as _};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::blocking;
use crate::fd;

/// One read; a quarter of what a pipe holds.
const CHUNK_BYTES: usize = 16 * 1024;

/// Something to read from, registered with the reactor.
pub(super) type Source = Arc<AsyncFd<OwnedFd>>;

/// Something to write to.
#[derive(Clone, Debug)]
pub(super) enum Sink {
    /// A pipe, FIFO or terminal.
    Ready(Arc<AsyncFd<OwnedFd>>),
    /// A regular file, which is always ready and may yet be slow: written to on a thread of its
    /// own while there is something to write.
    File(Arc<OwnedFd>),
}

/// Registers a descriptor that can wait.
pub(super) fn register(fd: OwnedFd, interest: Interest) -> Result<Source> {
    fd::set_nonblocking(&fd)?;
    let fd = fd::watch(fd, interest).context(|| "watch a stream")?;
    Ok(Arc::new(fd))
}

impl Sink {
    /// A sink for a descriptor that can wait.
    pub(super) fn ready(fd: OwnedFd) -> Result<Self> {
        register(fd, Interest::WRITABLE).map(Self::Ready)
    }

    /// A sink for a file that cannot.
    pub(super) fn file(fd: OwnedFd) -> Self {
        Self::File(Arc::new(fd))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ready(fd) => fd.get_ref().as_fd(),
            Self::File(fd) => fd.as_fd(),
        }
    }
}

/// Copies in the background until the source ends or the sink breaks.
#[derive(Debug)]
pub(super) struct Pump {
    /// The task's: both descriptors are closed when it ends, which is how its reader is told.
    flow: Weak<Flow>,
    task: JoinHandle<()>,
}

impl Pump {
    /// Starts to copy; `left` was read before, and is written first.
    pub(super) fn start(from: Source, to: Sink, left: Vec<u8>) -> Self {
        let state = State { left, ..State::default() };
        let flow = Arc::new(Flow {
            from,
            to,
            state: Mutex::new(state),
            changed: Notify::new(),
            settled: Notify::new(),
        });
        Self { flow: Arc::downgrade(&flow), task: tokio::spawn(copy(flow)) }
    }

    /// The way to hold it; none when it has ended.
    pub(super) fn flow(&self) -> Option<Arc<Flow>> {
        self.flow.upgrade()
    }

    /// Ends it; what it has not written is lost.
    pub(super) fn abort(&self) {
        self.task.abort();
    }

    /// Resolves when it has copied everything.
    pub(super) async fn finished(&mut self) {
        // It was aborted, or has panicked: in both cases there is no more to come.
        let _ = (&mut self.task).await;
    }
}

/// What a pump copies, and how far it is.
#[derive(Debug)]
pub(super) struct Flow {
    /// What it reads.
    pub(super) from: Source,
    /// What it writes to.
    pub(super) to: Sink,
    state: Mutex<State>,
    /// Wakes the pump.
    changed: Notify,
    /// Told when the pump is parked or has ended.
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: bool,
    parked: bool,
    ended: bool,
    /// Read and not written.
    left: Vec<u8>,
}

impl Flow {
    /// Stops the pump between two bytes; resolves when it has stopped.
    pub(super) async fn hold(&self) {
        self.state().held = true;
        self.changed.notify_waiters();
        loop {
            let settled = self.settled.notified();
            {
                let state = self.state();
                if state.parked || state.ended {
                    return;
                }
            }
            settled.await;
        }
    }

    /// Lets the pump go on.
    pub(super) fn release(&self) {
        self.state().held = false;
        self.changed.notify_waiters();
    }

    /// What was read and not written; none when there is no more to copy.
    pub(super) fn left(&self) -> Option<Vec<u8>> {
        let state = self.state();
        (!state.ended).then(|| state.left.clone())
    }

    /// Resolves when the pump is to stop.
    async fn stopped(&self) {
        self.until(|state| state.held).await;
    }

    /// Parks while the pump is held.
    async fn pass(&self) {
        if !self.state().held {
            return;
        }
        self.state().parked = true;
        self.settled.notify_waiters();
        self.until(|state| !state.held).await;
        self.state().parked = false;
    }

    async fn until(&self, wanted: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            if wanted(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    /// Writes what is left; returns when that is nothing, or when the pump is held.
    async fn flush(&self) -> std::io::Result<()> {
        loop {
            let bytes = std::mem::take(&mut self.state().left);
            if bytes.is_empty() {
                return Ok(());
            }
            let mut written = 0;
            let outcome = self.write(&bytes, &mut written).await;
            if outcome.is_ok() && written < bytes.len() {
                self.state().left = bytes[written..].to_vec();
                return Ok(());
            }
            outcome?;
        }
    }

    async fn write(&self, bytes: &[u8], written: &mut usize) -> std::io::Result<()> {
        let fd = match &self.to {
            Sink::Ready(fd) => fd,
            Sink::File(fd) => {
                let (fd, bytes) = (fd.clone(), bytes.to_vec());
                *written = bytes.len();
                let write = move || fd::write_all(fd.as_fd(), &bytes);
                return blocking::run(write).await.map_err(std::io::Error::other);
            }
        };
        while *written < bytes.len() {
            let rest = &bytes[*written..];
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, rest)?);
            tokio::select! {
                biased;
                () = self.stopped() => return Ok(()),
                n = fd.async_io(Interest::WRITABLE, write) => *written += n?,
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes the end of a pump, whichever way it ends.
struct End(Arc<Flow>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.settled.notify_waiters();
    }
}

/// Copies until the source ends or the sink breaks. A terminal ends with EIO.
async fn copy(flow: Arc<Flow>) {
    let end = End(flow);
    let flow = &end.0;
    loop {
        flow.pass().await;
        if let Err(err) = flow.flush().await {
            return lost(&err);
        }
        let ready = tokio::select! {
            biased;
            () = flow.stopped() => continue,
            ready = flow.from.ready(Interest::READABLE) => ready,
        };
        let Ok(mut ready) = ready else { return };
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match rustix::io::read(flow.from.get_ref(), &mut buffer[..]) {
                Ok(0) => return,
                Ok(n) => {
                    let mut written = 0;
                    if let Err(err) = flow.write(&buffer[..n], &mut written).await {
                        return lost(&err);
                    }
                    if written < n {
                        flow.state().left = buffer[written..n].to_vec();
                        break;
                    }
                    if flow.state().held {
                        break;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready_matching(tokio::io::Ready::READABLE);
                    break;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

fn lost(err: &std::io::Error) {
    if err.kind() != ErrorKind::BrokenPipe {
        crate::log::warning!("output lost: {err}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(future)
    }

    /// Held and let go again and again against a slow reader, and taken over by another pump in
    /// the middle: every byte arrives once and in order.
    #[test]
    fn no_byte_is_lost_or_doubled() {
        const BYTES: usize = 400 * 1024;
        run(async {
            let (source, input) = fd::pipe().expect("a pipe");
            let (output, sink) = fd::pipe().expect("a pipe");
            let data: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
            let written = data.clone();
            let writer = std::thread::spawn(move || fd::write_all(input.as_fd(), &written));
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                let mut buffer = [0; 777];
                loop {
                    match rustix::io::read(&output, &mut buffer).expect("reads") {
                        0 => return all,
                        n => all.extend_from_slice(&buffer[..n]),
                    }
                }
            });
            let from = register(source, Interest::READABLE).expect("registers");
            let to = Sink::ready(sink).expect("registers");
            let mut pump = Pump::start(from, to, Vec::new());
            loop {
                tokio::time::sleep(std::time::Duration::from_micros(200)).await;
                let Some(flow) = pump.flow() else { break };
                flow.hold().await;
                let Some(left) = flow.left() else { break };
                if left.len() % 2 == 0 {
                    flow.release();
                    continue;
                }
                pump.abort();
                pump.finished().await;
                pump = Pump::start(flow.from.clone(), flow.to.clone(), left);
            }
            writer.join().expect("no panic").expect("written");
            drop(pump);
            assert!(reader.join().expect("no panic") == data, "something else arrived");
        });
    }
}
