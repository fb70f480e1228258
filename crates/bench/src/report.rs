//! The table of results.

use std::fmt;
use std::time::Duration;

/// Results, a line each.
pub(crate) struct Report {
    lines: Vec<Line>,
}

struct Line {
    what: String,
    unit: &'static str,
    containerd: f64,
    gantry: f64,
    /// Whether a smaller number is the better one.
    smaller_is_better: bool,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { lines: Vec::new() }
    }

    /// Adds times: the median of each side, in milliseconds.
    pub(crate) fn times(&mut self, what: &str, sides: [Vec<Duration>; 2]) {
        let [containerd, gantry] = sides.map(|side| median(side).as_secs_f64() * 1e3);
        self.add(what, "ms", containerd, gantry, true);
    }

    /// Adds rates per second.
    pub(crate) fn rates(&mut self, what: &str, [containerd, gantry]: [f64; 2]) {
        self.add(what, "/s", containerd, gantry, false);
    }

    /// Adds sizes in KiB.
    pub(crate) fn sizes(&mut self, what: &str, [containerd, gantry]: [u64; 2]) {
        #[allow(clippy::cast_precision_loss, reason = "sizes shown with three digits")]
        self.add(what, "KiB", containerd as f64, gantry as f64, true);
    }

    /// Adds plain numbers of which the smaller is the better.
    pub(crate) fn factors(&mut self, what: &str, [containerd, gantry]: [f64; 2]) {
        self.add(what, "", containerd, gantry, true);
    }

    fn add(&mut self, what: &str, unit: &'static str, c: f64, g: f64, smaller_is_better: bool) {
        println!("{what}: {c:.2} {unit} containerd, {g:.2} {unit} gantry");
        let what = what.to_owned();
        self.lines.push(Line { what, unit, containerd: c, gantry: g, smaller_is_better });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<60} {:>12} {:>12}   {:>6}", "", "containerd", "gantry", "ratio")?;
        for line in &self.lines {
            let ratio = line.gantry / line.containerd;
            let better = if line.smaller_is_better { ratio < 1.0 } else { ratio > 1.0 };
            let mark = if better { "" } else { "  (worse)" };
            writeln!(
                f,
                "{:<60} {:>9.2} {:<3}{:>9.2} {:<3} {:>5.2}x{mark}",
                line.what, line.containerd, line.unit, line.gantry, line.unit, ratio
            )?;
        }
        Ok(())
    }
}

/// The middle one of some times, or other measurements; zero for none.
pub(crate) fn median<T: Ord + Copy + Default>(mut all: Vec<T>) -> T {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}
