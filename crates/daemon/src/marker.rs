//! The mark of a running daemon: it is there after an unclean end, and tells what to verify.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gantry_doctor::Unclean;
use gantry_errdefs::{Result, ResultExt as _};
use gantry_sys::{durable, machine};

/// Name of the file below the root: the boot of the machine and the start of the daemon, in
/// seconds since 1970, a line each.
const NAME: &str = "gantry.running";

/// The mark below one root.
#[derive(Debug)]
pub(crate) struct Marker {
    path: PathBuf,
    boot: String,
    /// When this daemon started.
    started: SystemTime,
}

impl Marker {
    /// Marks the root as in use; tells how the daemon before ended, if it was not told to stop.
    ///
    /// # Errors
    /// The I/O error: without the mark an unclean end would pass unnoticed.
    pub(crate) fn set(root: &Path) -> Result<(Self, Option<Unclean>)> {
        let path = root.join(NAME);
        let what = || path.display().to_string();
        let boot = machine::boot_id().context(|| machine::BOOT_ID)?;
        let found = durable::read_optional(&path).context(what)?;
        let unclean = found.map(|text| parse(&String::from_utf8_lossy(&text), &boot));
        // What an unclean end left unverified stays to be verified if this daemon ends so too.
        let now = SystemTime::now();
        let since = match unclean {
            Some(Unclean { since, .. }) => since.unwrap_or(SystemTime::UNIX_EPOCH),
            None => now,
        };
        let marker = Self { path: path.clone(), boot, started: now };
        marker.write(since).context(what)?;
        Ok((marker, unclean))
    }

    /// Notes that what came before this daemon has been verified.
    pub(crate) fn verified(&self) {
        if let Err(e) = self.write(self.started) {
            tracing::warn!(path = %self.path.display(), error = %e, "the next start verifies more");
        }
    }

    fn write(&self, since: SystemTime) -> io::Result<()> {
        let seconds = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let text = format!("{}\n{seconds}\n", self.boot);
        gantry_failpoint::hit("daemon.marker")?;
        durable::write_atomic(&self.path, text.as_bytes(), 0o600)
    }

    /// Takes the mark away: all is in good order.
    pub(crate) fn clear(&self) {
        let cleared = gantry_failpoint::hit("daemon.marker.clear")
            .and_then(|()| std::fs::remove_file(&self.path))
            .and_then(|()| durable::sync_dir(self.path.parent().unwrap_or(Path::new("/"))));
        if let Err(e) = cleared
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "the next start verifies more");
        }
    }
}

fn parse(text: &str, boot: &str) -> Unclean {
    let mut lines = text.lines();
    let same_boot = lines.next() == Some(boot);
    let since = lines
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        // A clock that was set back tells nothing.
        .filter(|since| *since <= SystemTime::now());
    Unclean { since, same_boot }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unclean_end_is_noticed_with_the_time_to_verify_from() {
        let dir = tempfile::tempdir().unwrap();
        let (marker, unclean) = Marker::set(dir.path()).unwrap();
        assert_eq!(unclean, None);
        drop(marker);
        let (_, first) = Marker::set(dir.path()).unwrap();
        let first = first.unwrap();
        assert!(first.same_boot && first.since.is_some());
        // Killed again before it could verify: still from the first start on.
        let (marker, second) = Marker::set(dir.path()).unwrap();
        assert_eq!(second, Some(first));
        marker.verified();
        let (marker, third) = Marker::set(dir.path()).unwrap();
        assert!(third.unwrap().since >= first.since);
        marker.clear();
        assert_eq!(Marker::set(dir.path()).unwrap().1, None);
    }

    #[test]
    fn what_cannot_be_read_means_everything() {
        assert_eq!(parse("another\nx", "this"), Unclean { since: None, same_boot: false });
        assert_eq!(parse("", "this"), Unclean { since: None, same_boot: false });
        let future = format!("this\n{}", u64::MAX / 4);
        assert_eq!(parse(&future, "this"), Unclean { since: None, same_boot: true });
    }
}
