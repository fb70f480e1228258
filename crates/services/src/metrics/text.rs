//! The text format of Prometheus, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// Is what it is.
    Gauge,
    /// A sum and a count.
    Summary,
    /// Counts up to bounds, a sum and a count.
    Histogram,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Summary => "summary",
            Self::Histogram => "histogram",
        }
    }
}

/// Numbers by name: all of one name stand together.
#[derive(Debug, Default)]
pub(super) struct Text {
    families: BTreeMap<String, (Kind, String)>,
}

impl Text {
    /// Adds a number.
    pub(super) fn add(&mut self, name: &str, kind: Kind, labels: &[(&str, &str)], value: f64) {
        self.line(name, name, kind, labels, value);
    }

    /// Adds a sum of `count` things.
    pub(super) fn summary(&mut self, name: &str, sum: f64, count: u64) {
        self.line(name, &format!("{name}_sum"), Kind::Summary, &[], sum);
        self.line(name, &format!("{name}_count"), Kind::Summary, &[], count as f64);
    }

    /// Adds a histogram of `count` things that come to `sum`; `buckets` are bounds, in their order,
    /// and how many are up to that bound and beyond the one before.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (f64, u64)>,
        sum: f64,
        count: u64,
    ) {
        let mut so_far = 0;
        let bucket = format!("{name}_bucket");
        let add = |text: &mut Self, bound: &str, count: u64| {
            let mut labels = labels.to_vec();
            labels.push(("le", bound));
            text.line(name, &bucket, Kind::Histogram, &labels, count as f64);
        };
        for (bound, within) in buckets {
            so_far += within;
            add(self, &bound.to_string(), so_far);
        }
        add(self, "+Inf", count.max(so_far));
        self.line(name, &format!("{name}_sum"), Kind::Histogram, labels, sum);
        self.line(
            name,
            &format!("{name}_count"),
            Kind::Histogram,
            labels,
            count.max(so_far) as f64,
        );
    }

    fn line(&mut self, family: &str, name: &str, kind: Kind, labels: &[(&str, &str)], value: f64) {
        let (_, lines) =
            self.families.entry(family.to_owned()).or_insert_with(|| (kind, String::new()));
        lines.push_str(name);
        for (n, (key, value)) in labels.iter().enumerate() {
            lines.push(if n == 0 { '{' } else { ',' });
            let _ = write!(lines, "{key}=\"{}\"", escaped(value));
        }
        if !labels.is_empty() {
            lines.push('}');
        }
        let _ = writeln!(lines, " {value}");
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        let mut text = String::new();
        for (name, (kind, lines)) in self.families {
            let _ = writeln!(text, "# TYPE {name} {}", kind.word());
            text.push_str(&lines);
        }
        text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_one_name_stand_together() {
        let mut text = Text::default();
        text.add("b", Kind::Gauge, &[("x", "1\"\\\n")], 1.5);
        text.add("a", Kind::Counter, &[], 3.0);
        text.add("b", Kind::Gauge, &[("x", "2"), ("y", "z")], 18_446_744_073_709.0);
        text.summary("c", 0.25, 2);
        let want = "# TYPE a counter\na 3\n# TYPE b gauge\nb{x=\"1\\\"\\\\\\n\"} 1.5\n\
                    b{x=\"2\",y=\"z\"} 18446744073709\n# TYPE c summary\nc_sum 0.25\nc_count 2\n";
        assert_eq!(text.finish(), want);
    }
}
