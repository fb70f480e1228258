//! One container: what happened to it, when something is due, and doing it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_errdefs::Result;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Backoff;
use crate::labels::Wish;
use crate::policy::{Occasion, Seen, Verdict, decide};

/// A shim publishes an exit a moment before it shows it; after this many looks it is believed.
const STALE_LOOKS_MAX: usize = 50;
/// Between two such looks.
const STALE_PAUSE: Duration = Duration::from_millis(10);
/// A shim that does not say what its task does is asked again after this.
const UNCLEAR_PAUSE: Duration = Duration::from_secs(5);
/// What a start that failed counts as: the exit status nobody knows.
const STATUS_UNKNOWN: u32 = 255;

/// What a keeper does its work on; the daemon's stores and shims, or a test's.
#[async_trait]
pub(crate) trait World: Send + Sync + 'static {
    /// What the container's labels ask for, and when the record was last changed. None: nothing,
    /// or there is no such container.
    async fn wish(&self) -> Option<(Wish, SystemTime)>;

    /// What its task does.
    async fn see(&self) -> Seen;

    /// Removes what is left of the task and starts it anew; returns the pid.
    async fn start(&self, wish: &Wish) -> Result<u32>;

    /// Notes that no start is pending any more.
    async fn settle(&self);

    /// Kills and removes the task.
    async fn stop(&self) -> Result<()>;

    /// Forgets restarts and stops of the past.
    async fn begin_anew(&self) -> Result<()>;
}

/// The way to tell a keeper that something happened.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    news: Mutex<News>,
    wake: Notify,
}

/// What happened since the keeper last looked.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Anything at all.
    any: bool,
    /// The task was started: its pid, and when.
    started: Option<(u32, SystemTime)>,
    /// The task ended: its pid.
    exited: Option<u32>,
}

impl Keeper {
    /// The task was started.
    pub(crate) fn started(&self, pid: u32, at: SystemTime) {
        self.note(|news| {
            news.started = Some((pid, at));
            news.exited = None;
        });
    }

    /// The task ended.
    pub(crate) fn exited(&self, pid: u32) {
        self.note(|news| news.exited = Some(pid));
    }

    /// Something else changed.
    pub(crate) fn changed(&self) {
        self.note(|_| ());
    }

    /// Whether there is something that no keeper has looked at.
    pub(crate) fn has_news(&self) -> bool {
        self.news().any
    }

    fn note(&self, what: impl FnOnce(&mut News)) {
        let mut news = self.news();
        news.any = true;
        what(&mut news);
        drop(news);
        self.wake.notify_one();
    }

    fn take(&self) -> News {
        std::mem::take(&mut *self.news())
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one container in the state it is to be in, until it asks for nothing any more.
pub(crate) async fn keep(
    keeper: Arc<Keeper>,
    world: Arc<dyn World>,
    occasion: Occasion,
    interval: Duration,
) {
    let mut keeping = Keeping {
        world,
        interval,
        occasion,
        backoff: Backoff::default(),
        ours: None,
        exited: None,
        started_at: None,
        ended_at: None,
        failed: false,
        due: None,
    };
    loop {
        let news = keeper.take();
        let Some((wish, changed_at)) = keeping.world.wish().await else { return };
        let wish = keeping.hear(news, wish, changed_at).await;
        let seen = keeping.look(&wish).await;
        let verdict = decide(&wish, seen, keeping.occasion);
        let wake_at = match keeping.due(verdict, seen) {
            None if seen == Seen::Unclear => Instant::now() + UNCLEAR_PAUSE,
            None => {
                keeper.wake.notified().await;
                continue;
            }
            Some(at) => at,
        };
        tokio::select! {
            biased;
            () = keeper.wake.notified() => {}
            () = tokio::time::sleep_until(wake_at) => keeping.act(verdict, &wish).await,
        }
    }
}

struct Keeping {
    world: Arc<dyn World>,
    interval: Duration,
    occasion: Occasion,
    backoff: Backoff,
    /// The pid of the task that was started here.
    ours: Option<u32>,
    /// The pid of the task that ended last.
    exited: Option<u32>,
    started_at: Option<Instant>,
    ended_at: Option<Instant>,
    /// The last start came to nothing.
    failed: bool,
    due: Option<(Verdict, Instant)>,
}

impl Keeping {
    /// Takes note of what happened; returns the wish as it is after that.
    async fn hear(&mut self, news: News, mut wish: Wish, changed_at: SystemTime) -> Wish {
        if let Some((pid, at)) = news.started
            && self.ours != Some(pid)
        {
            self.ours = None;
            self.failed = false;
            self.backoff.reset();
            self.started_at = Some(Instant::now());
            self.ended_at = None;
            // A stop that came after the start is not one of the past.
            let traces = wish.explicitly_stopped || wish.count > 0 || wish.pending;
            let past = changed_at < at && traces;
            if past {
                match self.world.begin_anew().await {
                    Ok(()) => {
                        (wish.explicitly_stopped, wish.count, wish.pending) = (false, 0, false);
                    }
                    Err(err) => tracing::warn!(%err, "count of restarts stays"),
                }
            }
        }
        if let Some(pid) = news.exited {
            self.exited = Some(pid);
            self.ended_at = Some(Instant::now());
        }
        wish
    }

    async fn look(&mut self, wish: &Wish) -> Seen {
        let mut seen = self.world.see().await;
        for _ in 0..STALE_LOOKS_MAX {
            match seen {
                Seen::Alive { pid } if self.exited == Some(pid) => {}
                _ => break,
            }
            tokio::time::sleep(STALE_PAUSE).await;
            seen = self.world.see().await;
        }
        match seen {
            Seen::Alive { .. } => {
                self.failed = false;
                if wish.pending {
                    self.world.settle().await;
                }
            }
            Seen::Absent if self.failed => return Seen::Ended { status: STATUS_UNKNOWN },
            // A daemon before this one died between removing the old task and starting the new.
            Seen::Absent | Seen::Created
                if wish.pending && self.occasion == Occasion::DaemonStart =>
            {
                return Seen::Ended { status: STATUS_UNKNOWN };
            }
            _ => {}
        }
        seen
    }

    /// When `verdict` is due; none for nothing.
    fn due(&mut self, verdict: Verdict, seen: Seen) -> Option<Instant> {
        if verdict == Verdict::Leave {
            self.due = None;
            if seen != Seen::Unclear {
                self.occasion = Occasion::Event;
            }
            return None;
        }
        if let Some((what, at)) = self.due
            && what == verdict
        {
            return Some(at);
        }
        let pause = match verdict {
            Verdict::Start => self.backoff.pause(self.ran()),
            _ => self.interval,
        };
        let at = Instant::now() + pause;
        self.due = Some((verdict, at));
        Some(at)
    }

    /// How long the task ran, when both ends of that were seen.
    fn ran(&self) -> Option<Duration> {
        Some(self.ended_at?.saturating_duration_since(self.started_at?))
    }

    async fn act(&mut self, verdict: Verdict, wish: &Wish) {
        self.due = None;
        self.occasion = Occasion::Event;
        if verdict == Verdict::StopLater {
            if let Err(err) = self.world.stop().await {
                tracing::warn!(%err, "a task that is to be stopped");
            }
            return;
        }
        let now = Instant::now();
        match self.world.start(wish).await {
            Ok(pid) => {
                self.ours = Some(pid);
                self.failed = false;
                self.started_at = Some(Instant::now());
                self.ended_at = None;
            }
            // Its client was faster.
            Err(err) if err.is_already_exists() => {}
            Err(err) => {
                tracing::warn!(%err, "restart failed");
                self.failed = true;
                (self.started_at, self.ended_at) = (Some(now), Some(now));
            }
        }
    }
}
