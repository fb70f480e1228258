#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;

const SECTOR: usize = 512;

/// A log of entries `(sector, flags, data)`, in a directory with a base image of eight sectors.
fn log(entries: &[(u64, u64, &[u8])]) -> (tempfile::TempDir, WriteLog) {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    let head = |all: &mut Vec<u8>, words: [u64; 4]| {
        let at = all.len();
        all.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        all.resize(at + SECTOR, 0);
    };
    head(&mut all, [MAGIC, VERSION, entries.len() as u64, SECTOR as u64]);
    for (first, flags, data) in entries {
        let (sectors, mark_bytes) = match flags & MARK {
            0 => (data.len().div_ceil(SECTOR), 0),
            _ => (0, data.len()),
        };
        head(&mut all, [*first, sectors as u64, *flags, mark_bytes as u64]);
        if flags & DISCARD == 0 {
            all.extend_from_slice(data);
            all.resize(all.len().next_multiple_of(SECTOR), 0);
        }
    }
    fs::write(dir.path().join("log"), all).unwrap();
    fs::write(dir.path().join("base"), [b'.'; 8 * SECTOR]).unwrap();
    let log = WriteLog::open(&dir.path().join("log")).unwrap();
    (dir, log)
}

/// The first byte of every sector after `cut`.
fn replayed(dir: &tempfile::TempDir, log: &WriteLog, cut: Cut) -> String {
    let (base, to) = (dir.path().join("base"), dir.path().join("to"));
    log.replay(cut, &base, &to).unwrap();
    let image = fs::read(to).unwrap();
    assert_eq!(image.len(), 8 * SECTOR);
    image.chunks(SECTOR).map(|s| if s[0] == 0 { '0' } else { char::from(s[0]) }).collect()
}

#[test]
fn what_was_flushed_stays_and_the_rest_depends() {
    let (dir, log) = log(&[
        (0, 0, &[b'a'; 2 * SECTOR]),
        (1, 0, &[b'b'; SECTOR]),
        (0, FLUSH, &[]),
        (2, 0, &[b'c'; 2 * SECTOR]),
        (3, FUA, &[b'd'; SECTOR]),
        (0, DISCARD, &[0; SECTOR]),
    ]);
    assert_eq!((log.len(), log.flushes()), (6, 1));
    for (entries, kept, lost) in [
        (0, "........", "........"),
        (1, "aa......", "........"),
        (2, "ab......", "........"),
        (3, "ab......", "ab......"),
        (4, "abcc....", "ab......"),
        (5, "abcd....", "ab.d...."),
        (6, "0bcd....", "ab.d...."),
    ] {
        let at = |unflushed| replayed(&dir, &log, Cut { entries, unflushed });
        assert_eq!(at(Unflushed::Kept), kept, "{entries}");
        assert_eq!(at(Unflushed::Lost), lost, "{entries}");
    }
    let some = |seed| replayed(&dir, &log, Cut { entries: 6, unflushed: Unflushed::Some(seed) });
    let seen: std::collections::BTreeSet<_> = (0..200).map(some).collect();
    // The discard and the write to two sectors (whole, torn, lost), each on its own.
    let all = ["0b.d....", "0bcd....", "ab.d....", "abcd...."];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), all);
    assert_eq!(some(7), some(7));
}

#[test]
fn marks_are_found_in_their_place() {
    let mut mark = format!("{MARK_PREFIX}3 image").into_bytes();
    mark.resize(SECTOR, 0);
    let (dir, log) = log(&[(0, 0, &[b'a'; SECTOR]), (0, MARK, b"dm mark"), (7, 0, &mark)]);
    assert_eq!(log.marks().unwrap(), [(3, "3 image".to_owned())]);
    let cut = Cut { entries: 3, unflushed: Unflushed::Kept };
    assert_eq!(replayed(&dir, &log, cut), "a......g");
}

#[test]
fn what_is_no_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for content in [vec![], vec![0; SECTOR], vec![0xff; 2 * SECTOR]] {
        fs::write(&path, content).unwrap();
        assert!(WriteLog::open(&path).is_err());
    }
    // One entry that claims more sectors than a number of bytes can say, and then another.
    let mut bytes = Vec::new();
    for words in [[MAGIC, VERSION, 2, SECTOR as u64], [0, u64::MAX / 2, 0, 0]] {
        let at = bytes.len();
        bytes.extend(words.iter().flat_map(|w: &u64| w.to_le_bytes()));
        bytes.resize(at + SECTOR, 0);
    }
    fs::write(&path, bytes).unwrap();
    assert!(WriteLog::open(&path).is_err());
}
