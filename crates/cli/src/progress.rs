//! Progress of transfers: live bars on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use gantry_client::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// How often a terminal is drawn, per second; more is not seen.
const DRAWS_PER_SECOND: u8 = 10;

/// Longest name that is shown, in characters; longer ones are cut in the middle of the digest.
const NAME_WIDTH: usize = 48;

/// Shows the steps of one transfer.
pub(crate) struct Display {
    started: Instant,
    mode: Mode,
}

enum Mode {
    Live { bars: MultiProgress, by_name: HashMap<String, ProgressBar> },
    Lines { last: HashMap<String, String> },
}

impl Display {
    /// Live on a terminal, lines elsewhere.
    pub(crate) fn new() -> Self {
        let mode = if std::io::stdout().is_terminal() {
            let target = ProgressDrawTarget::stdout_with_hz(DRAWS_PER_SECOND);
            let bars = MultiProgress::with_draw_target(target);
            Mode::Live { bars, by_name: HashMap::new() }
        } else {
            Mode::Lines { last: HashMap::new() }
        };
        Self { started: Instant::now(), mode }
    }

    /// Shows a step.
    pub(crate) fn step(&mut self, step: &Progress) {
        let name = if step.name.is_empty() { "total" } else { step.name.as_str() };
        match &mut self.mode {
            Mode::Lines { last } => {
                // One line a state, not one a chunk.
                if last.get(name) != Some(&step.event) {
                    last.insert(name.to_owned(), step.event.clone());
                    output::line(format!("{name}: {}", step.event));
                }
            }
            Mode::Live { bars, by_name } => {
                let bar = by_name.entry(name.to_owned()).or_insert_with(|| {
                    let bar = bars.add(ProgressBar::new(0));
                    bar.set_style(style());
                    bar.set_prefix(shorten(name));
                    bar
                });
                bar.set_message(step.event.clone());
                if step.total > 0 {
                    bar.set_length(step.total.unsigned_abs());
                    bar.set_position(step.progress.unsigned_abs());
                }
            }
        }
    }

    /// Ends the display with a line about the whole.
    pub(crate) fn finish(self, what: &str) {
        if let Mode::Live { bars, by_name } = &self.mode {
            by_name.values().for_each(ProgressBar::abandon);
            let _ = bars.println(String::new());
        }
        let elapsed = Duration::from_millis(self.started.elapsed().as_millis() as u64);
        output::line(format!("{what} in {elapsed:?}"));
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix:48} {msg:14} |{bar:24}| {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec}",
    )
    .expect("the template is valid")
    .progress_chars("=> ")
}

fn shorten(name: &str) -> String {
    if name.chars().count() <= NAME_WIDTH {
        return name.to_owned();
    }
    let head: String = name.chars().take(NAME_WIDTH - 2).collect();
    format!("{head}..")
}
