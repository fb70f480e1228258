//! Facts from before the start, until a client has had them.
//!
//! A daemon that has just started tells of what happened without it, before its clients have found
//! out that it is back. Should it be killed again before one has, the next daemon must tell: so
//! these facts are kept in a file as well, and each is struck off when a client has taken it. The
//! file is a log of lines, `+<number> <fact>` and `-<number>`:
//!
//! ```text
//! +<number> <seconds> <nanoseconds> <namespace> <topic> <key> <type URL> <value>
//! ```
//! The last three are in hexadecimal. It lies in the state directory, as bundles do, and is not
//! synced: it is for the death of the daemon, and the machine's takes the tasks along.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use gantry_core::{Any, Namespace};
use gantry_errdefs::{Result, ResultExt as _};

use crate::Envelope;

/// One that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) number: u64,
    /// What tells the fact from others, whoever brings it.
    pub(crate) key: String,
    pub(crate) envelope: Envelope,
}

/// The file of them.
#[derive(Debug)]
pub(crate) struct RecoveredFile {
    path: PathBuf,
    /// Each write is one line at the end, so it needs no lock.
    file: File,
    next: AtomicU64,
}

impl RecoveredFile {
    /// Opens the file at `path` and returns what no client has had.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Kept>)> {
        let what = || path.display().to_string();
        let text = match fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            // Damaged: rather nothing than no daemon.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => String::new(),
            read => read.context(what)?,
        };
        let kept = read(&text);
        let fresh = path.with_extension("new");
        let lines: String = kept.iter().map(line).collect();
        gantry_failpoint::hit("events.recovered").context(what)?;
        fs::write(&fresh, lines).and_then(|()| fs::rename(&fresh, path)).context(what)?;
        let file = OpenOptions::new().append(true).open(path).context(what)?;
        let next = kept.iter().map(|kept| kept.number + 1).max().unwrap_or(0);
        Ok((Self { path: path.to_owned(), file, next: AtomicU64::new(next) }, kept))
    }

    /// Keeps a fact. Blocks for as long as a write to the page cache does.
    pub(crate) fn keep(&self, key: &str, envelope: &Envelope) -> Kept {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let kept = Kept { number, key: key.to_owned(), envelope: envelope.clone() };
        self.append(&line(&kept));
        kept
    }

    /// A client has had it.
    pub(crate) fn strike(&self, number: u64) {
        self.append(&format!("-{number}\n"));
    }

    /// Nobody needs any of them any more.
    pub(crate) fn clear(&self) {
        if let Err(err) = self.file.set_len(0) {
            tracing::warn!(path = %self.path.display(), %err, "facts may be told once more");
        }
    }

    fn append(&self, line: &str) {
        let written = gantry_failpoint::hit("events.recovered")
            .and_then(|()| (&self.file).write_all(line.as_bytes()));
        if let Err(err) = written {
            tracing::warn!(path = %self.path.display(), %err, "facts are kept in memory only");
        }
    }
}

fn line(kept: &Kept) -> String {
    let Kept { number, key, envelope } = kept;
    let since = envelope.timestamp.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (secs, nanos) = (since.as_secs(), since.subsec_nanos());
    let (namespace, topic) = (&envelope.namespace, &envelope.topic);
    let (key, kind) = (hex(key.as_bytes()), hex(envelope.event.type_url.as_bytes()));
    let value = hex(&envelope.event.value);
    format!("+{number} {secs} {nanos} {namespace} {topic} {key} {kind} {value}\n")
}

/// What the lines of a file come to. One that was cut short, by the death of its writer, counts for
/// nothing.
fn read(text: &str) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        if let Some(number) = line.strip_prefix('-').and_then(|n| n.parse::<u64>().ok()) {
            kept.retain(|kept| kept.number != number);
        } else if let Some(one) = line.strip_prefix('+').and_then(parse) {
            kept.push(one);
        }
    }
    kept
}

fn parse(line: &str) -> Option<Kept> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let since = Duration::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let namespace = Namespace::new(words.next()?).ok()?;
    let topic = words.next()?.to_owned();
    let key = String::from_utf8(unhex(words.next()?)?).ok()?;
    let type_url = String::from_utf8(unhex(words.next()?)?).ok()?;
    let event = Any { type_url, value: unhex(words.next()?)? };
    let timestamp = UNIX_EPOCH.checked_add(since)?;
    let envelope = Envelope { timestamp, namespace, topic, event };
    words.next().is_none().then_some(Kept { number, key, envelope })
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|b| [b >> 4, b & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str, value: &[u8]) -> Envelope {
        Envelope {
            timestamp: UNIX_EPOCH + Duration::new(77, 5),
            namespace: Namespace::new("default").expect("a name"),
            topic: topic.to_owned(),
            event: Any { type_url: "containerd.events.TaskExit".to_owned(), value: value.to_vec() },
        }
    }

    #[test]
    fn what_nobody_has_had_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("recovered");
        let (file, none) = RecoveredFile::open(&path).expect("opened");
        assert_eq!(none, []);
        let exit = file.keep("a exit", &envelope("/tasks/exit", &[0, 255, 10]));
        let oom = file.keep("a oom", &envelope("/tasks/oom", b""));
        file.strike(oom.number);
        let (file, kept) = RecoveredFile::open(&path).expect("opened");
        assert_eq!(kept, std::slice::from_ref(&exit));
        let delete = file.keep("", &envelope("/tasks/delete", b"x"));
        assert!(delete.number > exit.number);
        file.strike(exit.number);
        let (file, kept) = RecoveredFile::open(&path).expect("opened");
        assert_eq!(kept, [delete]);
        file.clear();
        assert_eq!(RecoveredFile::open(&path).expect("opened").1, []);
    }

    #[test]
    fn damaged_lines_count_for_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("recovered");
        let (file, _) = RecoveredFile::open(&path).expect("opened");
        let kept = file.keep("k", &envelope("/tasks/exit", b"x"));
        let whole = fs::read_to_string(&path).expect("text");
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).expect("written");
            assert_eq!(RecoveredFile::open(&path).expect("opened").1, [], "cut at {cut}");
        }
        fs::write(&path, format!("nonsense\n+1 2\n-x\n{whole}+9 1 1 a/b /t 0 0 0\n-4"))
            .expect("ok");
        assert_eq!(RecoveredFile::open(&path).expect("opened").1, [kept]);
        fs::write(&path, [0xff, 0xfe]).expect("written");
        assert_eq!(RecoveredFile::open(&path).expect("opened").1, []);
    }
}
