//! The runtime's own words about a failure.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;

/// Error text longer than this is cut: it travels in a ttrpc status and in daemon logs.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// How much of the log is read back; a call writes a few lines.
const LOG_BYTES_MAX: u64 = 256 * 1024;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The size of the log before a call, so that only what the call added is looked at.
pub(super) fn mark(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// The last error logged after `mark`, if there is one.
pub(super) fn last_error(path: &Path, mark: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(mark)).ok()?;
    let mut text = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut text).ok()?;
    last_error_in(&text)
}

fn last_error_in(text: &[u8]) -> Option<String> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .rfind(|line| line.level == "error" && !line.msg.is_empty())
        .map(|line| clip(line.msg.trim()))
}

/// What the runtime printed, trimmed and cut.
pub(super) fn printed(text: &[u8]) -> String {
    clip(String::from_utf8_lossy(text).trim())
}

fn clip(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_wins_and_noise_is_skipped() {
        let log = concat!(
            "{\"level\":\"error\",\"msg\":\"first\",\"time\":\"x\"}\n",
            "not json\n",
            "{\"level\":\"error\",\"msg\":\"runc create failed: no such file\"}\n",
            "{\"level\":\"warning\",\"msg\":\"later\"}\n",
        );
        let found = last_error_in(log.as_bytes());
        assert_eq!(found.as_deref(), Some("runc create failed: no such file"));
        assert_eq!(last_error_in(b""), None);
    }

    #[test]
    fn long_text_is_cut_on_a_character() {
        let long = "é".repeat(TEXT_BYTES_MAX);
        assert!(printed(long.as_bytes()).len() <= TEXT_BYTES_MAX);
    }
}
