//! RFC 3339 times, as labels and files carry them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_errdefs::{Error, Result};
use jiff::Timestamp;

/// Formats a time in UTC with the fraction it has: `2026-11-21T22:41:32.5Z`.
pub fn format(time: SystemTime) -> String {
    match Timestamp::try_from(time) {
        Ok(t) => t.to_string(),
        // Outside the years jiff can show; no clock and no label gets there.
        Err(_) => "1970-01-01T00:00:00Z".to_owned(),
    }
}

/// Parses an RFC 3339 time with any offset.
///
/// # Errors
/// InvalidArgument naming the text.
pub fn parse(text: &str) -> Result<SystemTime> {
    let time: Timestamp = text.parse().map_err(|e: jiff::Error| {
        Error::invalid_argument(format!("time {text:?}: not in RFC 3339 form: {e}"))
    })?;
    Ok(time.into())
}

/// Parses a time as HTTP headers carry it: `Wed, 21 Oct 2015 07:28:00 GMT`. None for anything
/// else.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    let time = jiff::fmt::rfc2822::parse(text.trim()).ok()?;
    Some(time.timestamp().into())
}

/// Seconds and nanoseconds since the epoch, as `google.protobuf.Timestamp` carries them.
pub fn to_parts(time: SystemTime) -> (i64, i32) {
    let split = |d: Duration| {
        (i64::try_from(d.as_secs()).unwrap_or(i64::MAX), d.subsec_nanos().cast_signed())
    };
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => split(after),
        Err(before) => match split(before.duration()) {
            (secs, 0) => (-secs, 0),
            (secs, nanos) => (-secs - 1, 1_000_000_000 - nanos),
        },
    }
}

/// The time that seconds and nanoseconds since the epoch stand for; the epoch when it is out of
/// range.
pub fn from_parts(secs: i64, nanos: i32) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base = if secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let fraction = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    base.and_then(|t| t.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for text in
            ["2026-11-21T22:41:32Z", "1969-12-31T23:59:59.5Z", "2026-01-01T00:00:00.000000001Z"]
        {
            let time = parse(text).unwrap();
            assert_eq!(format(time), text);
            let (secs, nanos) = to_parts(time);
            assert_eq!(from_parts(secs, nanos), time);
        }
        assert_eq!(
            parse("2026-11-21T23:41:32+01:00").unwrap(),
            parse("2026-11-21T22:41:32Z").unwrap()
        );
        let http = parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        assert_eq!(format(http), "2015-10-21T07:28:00Z");
        assert!(parse_http_date("soon").is_none());
        assert!(parse("yesterday").unwrap_err().is_invalid_argument());
    }
}
