//! The rules as tables, and a keeper on a world of its own, whose time is the test's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_core::Labels;
use gantry_errdefs::{Error, Result};
use tokio::time::Instant;

use crate::Backoff;
use crate::keeper::{Keeper, World, keep};
use crate::labels::{self, Desired, Wish};
use crate::policy::{Occasion, Policy, Seen, Verdict, decide};

const INTERVAL: Duration = Duration::from_secs(10);

fn wish(policy: &str, count: u32, explicitly_stopped: bool) -> Wish {
    Wish {
        desired: Desired::Running,
        policy: policy.parse().expect("a policy"),
        count,
        pending: false,
        explicitly_stopped,
        log: String::new(),
    }
}

#[test]
fn policies_are_read() {
    for (text, policy) in [
        ("", Policy::Always),
        ("always", Policy::Always),
        ("no", Policy::No),
        ("unless-stopped", Policy::UnlessStopped),
        ("on-failure", Policy::OnFailure(None)),
        ("on-failure:0", Policy::OnFailure(None)),
        ("on-failure:3", Policy::OnFailure(Some(3))),
    ] {
        assert_eq!(text.parse::<Policy>().expect(text), policy);
    }
    for text in ["sometimes", "always:3", "no:1", "on-failure:x", "on-failure:-1"] {
        assert!(text.parse::<Policy>().expect_err(text).is_invalid_argument());
    }
}

#[test]
fn labels_are_read() {
    let read = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Wish::read(&pairs.collect::<Labels>())
    };
    assert_eq!(read(&[(labels::POLICY, "always")]), None, "no status, no wish");
    let all = read(&[
        (labels::STATUS, "running"),
        (labels::POLICY, "on-failure:2"),
        (labels::COUNT, "1"),
        (labels::LOG_URI, "binary:///log"),
        (labels::LOG_PATH, "/ignored"),
        (labels::EXPLICITLY_STOPPED, "true"),
    ]);
    let all = all.expect("a wish");
    assert_eq!((all.desired, all.count), (Desired::Running, 1));
    assert!(all.explicitly_stopped);
    assert_eq!(all.log, "binary:///log");
    let old = read(&[(labels::STATUS, "stopped"), (labels::LOG_PATH, "/a/log")]).expect("a wish");
    assert_eq!((old.desired, old.policy), (Desired::Stopped, Policy::Always));
    assert_eq!(old.log, "file:///a/log");
    let odd = read(&[(labels::STATUS, "paused"), (labels::POLICY, "?")]).expect("a wish");
    assert_eq!((odd.desired, odd.policy), (Desired::Other, Policy::No));
}

/// Docker's table: policy, count so far, stopped explicitly; verdicts after exit 0, after exit 1,
/// and the same when the daemon starts.
#[test]
fn an_ended_container_gets_what_docker_gives_it() {
    use Verdict::{Leave, Start};
    for (policy, count, stopped, verdicts) in [
        ("no", 0, false, [Leave, Leave, Leave, Leave]),
        ("always", 7, false, [Start, Start, Start, Start]),
        ("always", 0, true, [Leave, Leave, Start, Start]),
        ("unless-stopped", 7, false, [Start, Start, Start, Start]),
        ("unless-stopped", 0, true, [Leave, Leave, Leave, Leave]),
        ("on-failure", 99, false, [Leave, Start, Leave, Start]),
        ("on-failure:3", 2, false, [Leave, Start, Leave, Start]),
        ("on-failure:3", 3, false, [Leave, Leave, Leave, Leave]),
        ("on-failure", 0, true, [Leave, Leave, Leave, Leave]),
    ] {
        let wish = wish(policy, count, stopped);
        let verdict = |status, occasion| decide(&wish, Seen::Ended { status }, occasion);
        let got = [
            verdict(0, Occasion::Event),
            verdict(1, Occasion::Event),
            verdict(0, Occasion::DaemonStart),
            verdict(137, Occasion::DaemonStart),
        ];
        assert_eq!(got, verdicts, "{policy} count {count} stopped {stopped}");
    }
}

#[test]
fn what_does_not_run_yet_is_its_clients_for_a_while() {
    use Verdict::{Leave, Start, StartLater, StopLater};
    let always = wish("always", 0, false);
    assert_eq!(decide(&always, Seen::Absent, Occasion::Event), StartLater);
    assert_eq!(decide(&always, Seen::Absent, Occasion::DaemonStart), Start);
    assert_eq!(decide(&always, Seen::Created, Occasion::Event), Leave);
    assert_eq!(decide(&always, Seen::Created, Occasion::DaemonStart), StartLater);
    assert_eq!(decide(&always, Seen::Alive { pid: 1 }, Occasion::DaemonStart), Leave);
    assert_eq!(decide(&always, Seen::Unclear, Occasion::DaemonStart), Leave);
    let failing = wish("on-failure", 0, false);
    assert_eq!(decide(&failing, Seen::Absent, Occasion::DaemonStart), Leave, "it has not failed");
    let stopped = Wish { desired: Desired::Stopped, ..always };
    assert_eq!(decide(&stopped, Seen::Alive { pid: 1 }, Occasion::Event), StopLater);
    assert_eq!(decide(&stopped, Seen::Ended { status: 1 }, Occasion::DaemonStart), Leave);
}

#[test]
fn pauses_double_to_a_minute_and_a_long_run_ends_them() {
    let mut backoff = Backoff::default();
    let soon = Some(Duration::from_millis(5));
    let pauses: Vec<u128> = (0..12).map(|_| backoff.pause(soon).as_millis()).collect();
    assert_eq!(pauses[..5], [0, 100, 200, 400, 800]);
    assert_eq!(pauses[10..], [51_200, 60_000]);
    assert_eq!(backoff.pause(Some(Duration::from_secs(10))), Duration::ZERO);
    assert_eq!(backoff.pause(soon).as_millis(), 100);
    assert_eq!(backoff.pause(None), Duration::ZERO, "nobody knows how long");
}

/// A world of one container.
struct Stage {
    state: Mutex<State>,
}

struct State {
    wish: Option<Wish>,
    changed_at: SystemTime,
    seen: Seen,
    pid: u32,
    /// Starts that are to fail, in order.
    failures: VecDeque<Error>,
    /// What was done, with the time since the start of the test.
    done: Vec<(&'static str, u128)>,
    born: Instant,
}

impl Stage {
    fn new(wish: Wish, seen: Seen) -> Arc<Self> {
        let state = State {
            wish: Some(wish),
            changed_at: SystemTime::UNIX_EPOCH,
            seen,
            pid: 100,
            failures: VecDeque::new(),
            done: Vec::new(),
            born: Instant::now(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    fn done(&self) -> Vec<(&'static str, u128)> {
        self.with(|state| state.done.clone())
    }
}

impl State {
    fn note(&mut self, what: &'static str) {
        self.done.push((what, self.born.elapsed().as_millis()));
    }
}

#[async_trait]
impl World for Stage {
    async fn wish(&self) -> Option<(Wish, SystemTime)> {
        self.with(|state| Some((state.wish.clone()?, state.changed_at)))
    }

    async fn see(&self) -> Seen {
        self.with(|state| state.seen)
    }

    async fn start(&self, _: &Wish) -> Result<u32> {
        self.with(|state| {
            state.note("start");
            let wish = state.wish.as_mut().expect("a wish");
            (wish.count, wish.pending) = (wish.count + 1, false);
            if let Some(err) = state.failures.pop_front() {
                state.seen = Seen::Absent;
                return Err(err);
            }
            state.pid += 1;
            state.seen = Seen::Alive { pid: state.pid };
            Ok(state.pid)
        })
    }

    async fn settle(&self) {
        self.with(|state| state.wish.as_mut().expect("a wish").pending = false);
    }

    async fn stop(&self) -> Result<()> {
        self.with(|state| {
            state.note("stop");
            state.seen = Seen::Absent;
        });
        Ok(())
    }

    async fn begin_anew(&self) -> Result<()> {
        self.with(|state| {
            state.note("anew");
            let wish = state.wish.as_mut().expect("a wish");
            (wish.count, wish.explicitly_stopped) = (0, false);
        });
        Ok(())
    }
}

/// A keeper at work on a stage.
struct Play {
    stage: Arc<Stage>,
    keeper: Arc<Keeper>,
    task: tokio::task::JoinHandle<()>,
}

impl Play {
    async fn begin(wish: Wish, seen: Seen, occasion: Occasion) -> Self {
        let (stage, keeper) = (Stage::new(wish, seen), Arc::<Keeper>::default());
        let task = tokio::spawn(keep(keeper.clone(), stage.clone(), occasion, INTERVAL));
        let play = Self { stage, keeper, task };
        play.pass(0).await;
        play
    }

    /// Lets time pass.
    async fn pass(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    /// The task ends.
    async fn end(&self, status: u32) {
        let pid = self.stage.with(|state| {
            state.seen = Seen::Ended { status };
            state.pid
        });
        self.keeper.exited(pid);
        self.pass(0).await;
    }

    /// The client changes what it wants.
    async fn change(&self, change: impl FnOnce(&mut Wish)) {
        self.stage.with(|state| change(state.wish.as_mut().expect("a wish")));
        self.keeper.changed();
        self.pass(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_exit_is_followed_by_a_start_at_once_then_with_pauses() {
    let seen = Seen::Alive { pid: 100 };
    let play = Play::begin(wish("always", 0, false), seen, Occasion::Event).await;
    for pause in [0, 100, 200, 400] {
        let before = play.stage.done().len();
        play.end(0).await;
        play.pass(pause).await;
        assert_eq!(play.stage.done().len(), before + 1, "pause {pause}");
    }
    // Well again.
    play.pass(10_000).await;
    play.end(0).await;
    assert_eq!(play.stage.done().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_failing_container_is_started_as_often_as_it_may() {
    let seen = Seen::Alive { pid: 100 };
    let play = Play::begin(wish("on-failure:2", 0, false), seen, Occasion::Event).await;
    for _ in 0..4 {
        play.end(3).await;
        play.pass(60_000).await;
    }
    assert_eq!(play.stage.done().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_comes_during_the_pause_is_heeded() {
    let seen = Seen::Alive { pid: 100 };
    let play = Play::begin(wish("unless-stopped", 0, false), seen, Occasion::Event).await;
    play.end(1).await;
    play.end(1).await;
    assert_eq!(play.stage.done().len(), 1, "the second waits");
    play.change(|wish| wish.explicitly_stopped = true).await;
    play.pass(60_000).await;
    assert_eq!(play.stage.done().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_by_hand_begins_anew_unless_a_stop_came_after_it() {
    let mut stopped = wish("always", 4, true);
    stopped.explicitly_stopped = true;
    let seen = Seen::Ended { status: 0 };
    let play = Play::begin(stopped, seen, Occasion::Event).await;
    assert!(play.stage.done().is_empty());
    play.stage.with(|state| state.seen = Seen::Alive { pid: 7 });
    play.keeper.started(7, SystemTime::now());
    play.pass(0).await;
    assert_eq!(play.stage.done(), [("anew", 0)]);
    // The client stops it right after starting it.
    play.stage.with(|state| state.changed_at = SystemTime::now() + Duration::from_secs(1));
    play.change(|wish| wish.explicitly_stopped = true).await;
    play.keeper.started(8, SystemTime::now());
    play.end(137).await;
    play.pass(60_000).await;
    assert_eq!(play.stage.done().len(), 1, "still stopped");
}

#[tokio::test(start_paused = true)]
async fn a_new_container_is_its_clients_first() {
    let play = Play::begin(wish("always", 0, false), Seen::Absent, Occasion::Event).await;
    play.pass(9_000).await;
    assert!(play.stage.done().is_empty());
    play.pass(1_500).await;
    assert_eq!(play.stage.done(), [("start", 10_000)]);
    // And when the daemon starts nobody is waited for.
    let play = Play::begin(wish("always", 0, true), Seen::Absent, Occasion::DaemonStart).await;
    assert_eq!(play.stage.done(), [("start", 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_the_daemon_did_not_survive_is_seen_to_its_end() {
    for (policy, count, times) in [("on-failure", 0, 1), ("on-failure:1", 0, 1), ("no", 0, 0)] {
        let cut_off = Wish { pending: true, ..wish(policy, count, false) };
        for seen in [Seen::Absent, Seen::Created] {
            let play = Play::begin(cut_off.clone(), seen, Occasion::DaemonStart).await;
            play.pass(30_000).await;
            assert_eq!(play.stage.done().len(), times, "{policy} {seen:?}");
        }
        // It came as far as it was meant to.
        let play = Play::begin(cut_off, Seen::Alive { pid: 1 }, Occasion::DaemonStart).await;
        assert!(!play.stage.with(|state| state.wish.as_ref().is_some_and(|wish| wish.pending)));
        // One whose task its user removes is let be.
        let play = Play::begin(wish(policy, 1, false), Seen::Absent, Occasion::DaemonStart).await;
        play.pass(30_000).await;
        assert!(play.stage.done().is_empty(), "{policy}");
    }
    let labels = [(labels::STATUS, "running"), (labels::COUNT, "3"), (labels::PENDING, "true")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let read = Wish::read(&labels).expect("a wish");
    assert_eq!((read.count, read.pending), (2, true), "it is counted when it is made");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_to_be_stopped_gets_time_to_end() {
    let stopped = Wish { desired: Desired::Stopped, ..wish("always", 0, false) };
    let play = Play::begin(stopped, Seen::Alive { pid: 100 }, Occasion::Event).await;
    play.pass(9_000).await;
    assert!(play.stage.done().is_empty());
    play.pass(2_000).await;
    assert_eq!(play.stage.done(), [("stop", 10_000)]);
    play.pass(60_000).await;
    assert_eq!(play.stage.done().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_is_tried_again() {
    let seen = Seen::Alive { pid: 100 };
    let play = Play::begin(wish("on-failure:5", 0, false), seen, Occasion::Event).await;
    play.stage.with(|state| {
        state.failures = [Error::unknown("no"), Error::unknown("no")].into();
    });
    play.end(1).await;
    play.pass(1_000).await;
    assert_eq!(play.stage.done(), [("start", 0), ("start", 100), ("start", 300)]);
    assert!(matches!(play.stage.with(|state| state.seen), Seen::Alive { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_exit_that_is_told_before_it_shows_is_waited_for() {
    let seen = Seen::Alive { pid: 100 };
    let play = Play::begin(wish("always", 0, false), seen, Occasion::Event).await;
    play.keeper.exited(100);
    play.pass(25).await;
    assert!(play.stage.done().is_empty());
    play.stage.with(|state| state.seen = Seen::Ended { status: 0 });
    play.pass(50).await;
    assert_eq!(play.stage.done().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_ends_with_its_labels() {
    let seen = Seen::Alive { pid: 100 };
    let play = Play::begin(wish("always", 0, false), seen, Occasion::Event).await;
    play.stage.with(|state| state.wish = None);
    play.keeper.changed();
    play.task.await.expect("ends");
    assert!(!play.keeper.has_news());
}
