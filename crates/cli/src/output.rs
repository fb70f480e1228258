//! What is written to standard output and error.

use std::io::Write;
use std::time::{Duration, SystemTime};

use gantry_core::Labels;
use serde::Serialize;
use serde_json::{Map, Value};

/// How lists are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns.
    #[default]
    Table,
    /// A JSON array of objects.
    Json,
}

/// A list in columns, or as JSON. A cell is a value and how it is shown.
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    width_min: usize,
    padding: usize,
}

/// One cell.
pub(crate) struct Cell {
    shown: String,
    value: Value,
}

impl Cell {
    /// A value shown in a form of its own.
    pub(crate) fn new(shown: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { shown: shown.into(), value: value.into() }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        let text = text.into();
        Self { value: Value::String(text.clone()), shown: text }
    }
}

impl Table {
    /// Wide columns, as ctr shows containers and tasks.
    pub(crate) fn wide(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new(), width_min: 4, padding: 4 }
    }

    /// Narrow columns, as ctr shows images and content.
    pub(crate) fn narrow(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new(), width_min: 1, padding: 1 }
    }

    /// Adds a row, one cell per column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes the list.
    pub(crate) fn print(self, format: Format) {
        match format {
            Format::Json => json(&self.objects()),
            Format::Table => text(&self.layout()),
        }
    }

    fn objects(self) -> Value {
        let keys: Vec<String> =
            self.columns.iter().map(|c| c.to_lowercase().replace(' ', "_")).collect();
        let object = |row: Vec<Cell>| {
            let pairs = keys.iter().cloned().zip(row.into_iter().map(|c| c.value));
            Value::Object(Map::from_iter(pairs))
        };
        self.rows.into_iter().map(object).collect()
    }

    fn layout(&self) -> String {
        let length = |s: &str| s.chars().count();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                let cells = self.rows.iter().map(|r| length(&r[at].shown));
                let widest = cells.chain([length(self.columns[at])]).max().unwrap_or(0);
                (widest + self.padding).max(self.width_min)
            })
            .collect();
        let mut out = String::new();
        let mut add = |cells: &mut dyn Iterator<Item = &str>| {
            for (cell, width) in cells.zip(&widths) {
                out.push_str(&format!("{cell:width$}"));
            }
            out.push('\n');
        };
        add(&mut self.columns.iter().copied());
        for row in &self.rows {
            add(&mut row.iter().map(|c| c.shown.as_str()));
        }
        out
    }
}

/// Writes a line to standard output.
pub(crate) fn line(text: impl AsRef<str>) {
    self::text(&format!("{}\n", text.as_ref()));
}

/// Writes text to standard output. When nobody reads any more there is nobody to tell.
pub(crate) fn text(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes an error line.
pub(crate) fn error(program: &str, text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{program}: {text}");
}

/// Writes a warning line.
pub(crate) fn warning(program: &str, text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{program}: warning: {text}");
}

/// Writes a value as JSON, four spaces a level, as ctr does.
pub(crate) fn json(value: &impl Serialize) {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    if value.serialize(&mut serializer).is_ok() {
        line(String::from_utf8_lossy(&bytes));
    }
}

/// A byte count: `2.1 MiB`.
pub(crate) fn bytes(count: i64) -> String {
    let (value, unit) = scaled(count);
    format!("{value:.1} {unit}")
}

/// A byte count as content listings show it, four digits and no space: `2.098MiB`.
fn compact_bytes(count: i64) -> String {
    let (value, unit) = scaled(count);
    let whole_digits = format!("{value:.0}").len();
    let number = format!("{value:.*}", 4_usize.saturating_sub(whole_digits));
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => &number,
    };
    format!("{number}{unit}")
}

/// A byte count in the largest unit that leaves a whole part.
fn scaled(count: i64) -> (f64, &'static str) {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value.abs() >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    (value, UNITS[unit])
}

/// A byte count as a cell of a content listing.
pub(crate) fn compact_size_cell(count: i64) -> Cell {
    Cell::new(compact_bytes(count), count)
}

/// A byte count as a cell.
pub(crate) fn size_cell(count: i64) -> Cell {
    Cell::new(bytes(count), count)
}

/// Labels in one cell: `a=b,c=d`, `-` for none.
pub(crate) fn labels_cell(labels: &Labels) -> Cell {
    let value = serde_json::to_value(labels).unwrap_or_default();
    Cell::new(if labels.is_empty() { "-".to_owned() } else { label_list(labels) }, value)
}

/// Labels as `a=b,c=d`.
pub(crate) fn label_list(labels: &Labels) -> String {
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// A time as a cell: RFC 3339.
pub(crate) fn time_cell(time: SystemTime) -> Cell {
    gantry_core::timestamp::format(time).into()
}

/// How long ago, in words: `5 minutes`.
pub(crate) fn age(since: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(since).unwrap_or(Duration::ZERO).as_secs();
    let days = seconds / 86_400;
    let (count, unit) = match seconds {
        0 => return "Less than a second".to_owned(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ if days < 14 => (days, "day"),
        _ if days < 60 => (days / 7, "week"),
        _ if days < 730 => (days / 30, "month"),
        _ => (days / 365, "year"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::wide(&["CONTAINER", "IMAGE"]);
        table.row(["c1".into(), "a-much-longer-image".into()]);
        assert_eq!(
            table.layout(),
            "CONTAINER    IMAGE                  \nc1           a-much-longer-image    \n"
        );
    }

    #[test]
    fn json_keeps_the_values() {
        let mut table = Table::narrow(&["REF", "CREATED AT"]);
        table.row(["x".into(), size_cell(2048)]);
        let objects = table.objects();
        assert_eq!(objects.to_string(), r#"[{"created_at":2048,"ref":"x"}]"#);
    }

    #[test]
    fn sizes_and_ages_are_readable() {
        assert_eq!(bytes(0), "0.0 B");
        assert_eq!(bytes(2_200_000), "2.1 MiB");
        assert_eq!(compact_bytes(6), "6B");
        assert_eq!(compact_bytes(2_200_000), "2.098MiB");
        let ago = |secs| age(SystemTime::now() - Duration::from_secs(secs));
        assert_eq!(ago(1), "1 second");
        assert_eq!(ago(7_300), "2 hours");
        assert_eq!(ago(86_400 * 20), "2 weeks");
    }
}
