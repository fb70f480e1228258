//! Progress of transfers: live bars on a terminal, plain lines elsewhere.
//!
//! A bar shows its object's phase, bytes, rate and time left; one more, below them, the whole.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use gantry_client::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// How often a terminal is drawn, per second; more is not seen.
const DRAWS_PER_SECOND: u8 = 10;

/// Longest name that is shown, in characters; longer ones are cut in the middle of the digest.
const NAME_WIDTH: usize = 32;

/// Phases in which bytes come or go.
const MOVING: [&str; 5] = ["downloading", "uploading", "importing", "exporting", "waiting"];

/// What bars are styled by, while bytes move and after.
const MOVING_STYLE: &str = "{prefix:32} {msg:12} |{bar:20}| {bytes:>10}/{total_bytes:10} \
                            {binary_bytes_per_sec:>12} {eta:>4} left";
const STILL_STYLE: &str = "{prefix:32} {msg:12} |{bar:20}| {bytes:>10}/{total_bytes:10}";

/// Shows the steps of one transfer.
pub(crate) struct Display {
    started: Instant,
    mode: Mode,
}

enum Mode {
    Live(Live),
    Lines { last: HashMap<String, String> },
}

/// The bars of a terminal.
struct Live {
    bars: MultiProgress,
    by_name: HashMap<String, ProgressBar>,
    /// The whole, below all others.
    whole: ProgressBar,
    /// Bytes done and in all of what moves in this transfer, by name.
    bytes: HashMap<String, (u64, u64)>,
}

impl Display {
    /// Live on a terminal, lines elsewhere.
    pub(crate) fn new() -> Self {
        let mode = if std::io::stdout().is_terminal() {
            Mode::Live(Live::new())
        } else {
            Mode::Lines { last: HashMap::new() }
        };
        Self { started: Instant::now(), mode }
    }

    /// Shows a step.
    pub(crate) fn step(&mut self, step: &Progress) {
        match &mut self.mode {
            Mode::Lines { last } => {
                let name = if step.name.is_empty() { "total" } else { step.name.as_str() };
                // One line a state, not one a chunk.
                if last.get(name) != Some(&step.event) {
                    last.insert(name.to_owned(), step.event.clone());
                    output::line(format!("{name}: {}", step.event));
                }
            }
            Mode::Live(live) => live.step(step),
        }
    }

    /// Ends the display with a line about the whole.
    pub(crate) fn finish(self, what: &str) {
        if let Mode::Live(live) = &self.mode {
            live.by_name.values().for_each(ProgressBar::abandon);
            live.whole.finish_and_clear();
        }
        let elapsed = Duration::from_millis(self.started.elapsed().as_millis() as u64);
        output::line(format!("{what} in {elapsed:?}"));
    }
}

impl Live {
    fn new() -> Self {
        let target = ProgressDrawTarget::stdout_with_hz(DRAWS_PER_SECOND);
        let bars = MultiProgress::with_draw_target(target);
        let whole = bars.add(ProgressBar::new(0));
        whole.set_style(style(MOVING_STYLE));
        whole.set_prefix("total");
        Self { bars, by_name: HashMap::new(), whole, bytes: HashMap::new() }
    }

    fn step(&mut self, step: &Progress) {
        if step.name.is_empty() {
            self.whole.set_prefix(shorten(&step.event));
            return;
        }
        let (bars, whole) = (&self.bars, &self.whole);
        let bar = self.by_name.entry(step.name.clone()).or_insert_with(|| {
            let bar = bars.insert_before(whole, ProgressBar::new(0));
            bar.set_style(style(MOVING_STYLE));
            bar.set_prefix(shorten(&step.name));
            bar
        });
        let moves = MOVING.contains(&step.event.as_str());
        if bar.message() != step.event {
            // Only what moves has a rate.
            bar.set_style(style(if moves { MOVING_STYLE } else { STILL_STYLE }));
            bar.set_message(step.event.clone());
        }
        if step.total > 0 {
            let (done, total) = (step.progress.unsigned_abs(), step.total.unsigned_abs());
            bar.set_length(total);
            bar.set_position(done);
            self.count(&step.name, moves, done, total);
        }
    }

    /// Counts an object to the whole if bytes of it move; what was there already does not.
    fn count(&mut self, name: &str, moves: bool, done: u64, total: u64) {
        if moves {
            self.bytes.insert(name.to_owned(), (done, total));
        } else if let Some(bytes) = self.bytes.get_mut(name) {
            *bytes = (total, total);
        }
        let sum = |of: fn(&(u64, u64)) -> u64| self.bytes.values().map(of).sum();
        self.whole.set_length(sum(|(_, total)| *total));
        self.whole.set_position(sum(|(done, _)| *done));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is valid").progress_chars("=> ")
}

fn shorten(name: &str) -> String {
    if name.chars().count() <= NAME_WIDTH {
        return name.to_owned();
    }
    let head: String = name.chars().take(NAME_WIDTH - 2).collect();
    format!("{head}..")
}
