//! Reading cgroup files: numbers, `max`, and `key value` tables. What is missing is zero.

use std::path::Path;

/// A file with one number; `max` is the largest.
pub(super) fn number(directory: &Path, file: &str) -> u64 {
    text(directory, file).map_or(0, |text| parse(text.trim()))
}

/// A file of `key value` lines.
pub(super) struct Table(String);

impl Table {
    pub(super) fn read(directory: &Path, file: &str) -> Self {
        Self(text(directory, file).unwrap_or_default())
    }

    pub(super) fn of(text: String) -> Self {
        Self(text)
    }

    pub(super) fn get(&self, key: &str) -> u64 {
        self.0
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(name, _)| *name == key)
            .map_or(0, |(_, value)| parse(value.trim()))
    }
}

/// A file's text.
pub(super) fn text(directory: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(directory.join(file)).ok()
}

/// A number or `max`.
pub(super) fn parse(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_numbers() {
        let table = Table::of("oom_kill 3\noom 1\nlimit max\n".to_owned());
        assert_eq!(table.get("oom"), 1);
        assert_eq!(table.get("oom_kill"), 3);
        assert_eq!(table.get("limit"), u64::MAX);
        assert_eq!(table.get("none"), 0);
    }
}
