//! Being told that the kernel killed for memory.
//!
//! Two sources, one counter. The kernel's notification (an eventfd with version 1, inotify with
//! version 2) says when to look; the counter of kills says whether there is something new. The
//! counter is looked at once more when the init has exited and before its exit is told, so a kill
//! of the init itself is never missed, however quick the end was.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Cgroup;
use super::files::Table;
use crate::fd;

/// With version 1 the kernel notifies when memory has run out, and counts when it has chosen whom to
/// kill; it also notifies when a cgroup above has run out, and may kill elsewhere. So the counter is
/// [looked at](OomWatch::look) after these times, and without a count there is nothing to report.
pub(crate) const LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(5),
    Duration::from_millis(50),
    Duration::from_millis(500),
];
/// The files are a few lines.
const TABLE_BYTES_MAX: usize = 1024;

/// Watches one container's memory cgroup.
#[derive(Debug)]
pub(crate) struct OomWatch {
    notify: AsyncFd<OwnedFd>,
    /// Open while the container lives: readable even when the cgroup's directory is gone already.
    counter: File,
    seen: Mutex<u64>,
    /// Kernels before 4.13 do not count with version 1: there the notification is all there is.
    counts: bool,
    /// Something may have happened before this program watched: the first look needs no
    /// notification.
    owed: AtomicBool,
}

impl OomWatch {
    /// Starts watching; none when there is no memory controller, or it refuses.
    pub(crate) fn start(cgroup: &Cgroup) -> Option<Self> {
        let directory = cgroup.directory("memory")?;
        let (notify, counter) = match cgroup {
            Cgroup::V1(_) => {
                let counter = File::open(directory.join("memory.oom_control")).ok()?;
                let notify = rustix::event::eventfd(0, eventfd_flags()).ok()?;
                let order = format!("{} {}", notify.as_raw_fd(), counter.as_raw_fd());
                std::fs::write(directory.join("cgroup.event_control"), order).ok()?;
                (notify, counter)
            }
            Cgroup::V2(_) => {
                let path = directory.join("memory.events");
                let counter = File::open(&path).ok()?;
                let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
                let notify = inotify::init(flags).ok()?;
                inotify::add_watch(&notify, &path, inotify::WatchFlags::MODIFY).ok()?;
                (notify, counter)
            }
        };
        let notify = fd::watch(notify, Interest::READABLE).ok()?;
        let text = std::io::read_to_string(&counter).ok()?;
        let counts = text.lines().any(|line| line.starts_with("oom_kill "));
        let watch =
            Self { notify, counter, seen: Mutex::new(0), counts, owed: AtomicBool::new(false) };
        // Kills before the container's start are not its own.
        watch.news();
        Some(watch)
    }

    /// Goes on watching for the program before this one, which has reported `seen` kills.
    pub(crate) fn resume(cgroup: &Cgroup, seen: u64) -> Option<Self> {
        let watch = Self::start(cgroup)?;
        *watch.seen() = seen;
        // Where nothing is counted there is nothing to look at.
        watch.owed.store(watch.counts, Ordering::Relaxed);
        Some(watch)
    }

    /// How many kills were reported.
    pub(crate) fn reported(&self) -> u64 {
        *self.seen()
    }

    /// Whether there were kills that were not reported yet; they count as reported now.
    pub(crate) fn news(&self) -> bool {
        let Some(now) = self.kills() else { return false };
        let mut seen = self.seen();
        let news = now > *seen;
        *seen = now.max(*seen);
        news
    }

    /// Waits for the kernel to say that something happened. False: it will not say anything any
    /// more.
    pub(crate) async fn stirs(&self) -> bool {
        if self.owed.swap(false, Ordering::Relaxed) {
            return true;
        }
        let mut bytes = [0_u8; 1024];
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd.as_fd(), &mut bytes)?);
        let read = self.notify.async_io(Interest::READABLE, read).await;
        // Removing a cgroup of version 1 notifies as well, and then there is no counter.
        read.is_ok_and(|n| n > 0) && (!self.counts || self.kills().is_some())
    }

    /// Whether what the kernel has said is to be reported. It counts as reported then.
    pub(crate) fn look(&self) -> bool {
        !self.counts || self.news()
    }

    fn kills(&self) -> Option<u64> {
        let mut text = [0; TABLE_BYTES_MAX];
        let n = self.counter.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(&text[..n]).into_owned();
        Some(Table::of(text).get("oom_kill"))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, u64> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn eventfd_flags() -> EventfdFlags {
    EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK
}
