//! PAX records, read strictly.

use rustix::fs::Timespec;

/// What PAX records say that is read here.
#[derive(Default)]
pub(super) struct Pax {
    /// Time of modification.
    pub(super) mtime: Option<Timespec>,
    /// Bytes of content, a sparse map included.
    pub(super) size: Option<u64>,
    /// Extended attributes by full name.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads PAX records, `<length> <key>=<value>\n` each. An empty value takes a record back.
pub(super) fn read(mut data: &[u8]) -> Result<Pax, String> {
    let mut found = Pax::default();
    while !data.is_empty() {
        let (key, value, rest) = record(data).ok_or("a PAX record is malformed")?;
        data = rest;
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return Err("the name of an extended attribute is bad".to_owned());
            }
            found.xattrs.retain(|(n, _)| n != name);
            found.xattrs.push((name.to_vec(), value.to_vec()));
            continue;
        }
        let number = || -> Result<u64, String> {
            std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).ok_or_else(|| {
                let (k, v) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
                format!("PAX {k} {v:?} is no number")
            })
        };
        match key {
            _ if value.is_empty() => {}
            b"mtime" => {
                let when = time(value).ok_or_else(|| {
                    format!("PAX mtime {:?} is no time", String::from_utf8_lossy(value))
                })?;
                found.mtime = Some(when);
            }
            b"size" => found.size = Some(number()?),
            b"uid" | b"gid" => {
                number()?;
            }
            _ => {}
        }
    }
    Ok(found)
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn record(data: &[u8]) -> Option<Record<'_>> {
    let space = data.iter().position(|b| *b == b' ')?;
    let len: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(space + 1..len)?.strip_suffix(b"\n")?;
    let eq = record.iter().position(|b| *b == b'=')?;
    Some((&record[..eq], &record[eq + 1..], &data[len..]))
}

/// Digits of a second's fraction that matter.
const NANOS_DIGITS: usize = 9;

/// Seconds with an optional sign and fraction.
pub(super) fn time(value: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = if whole == "-" { 0 } else { whole.parse().ok()? };
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanos = 0i64;
    for i in 0..NANOS_DIGITS {
        let digit = fraction.as_bytes().get(i).map_or(0, |b| i64::from(b - b'0'));
        nanos = nanos * 10 + digit;
    }
    if negative && nanos > 0 {
        return Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos });
    }
    Some(Timespec { tv_sec: seconds, tv_nsec: nanos })
}
