//! The labels that steer the collector, parsed. No I/O, no store.
//!
//! | label | on | meaning |
//! |---|---|---|
//! | `containerd.io/gc.root` | content, snapshots | a root, whatever the value |
//! | `containerd.io/gc.ref.content[.x or /x]` | all | keeps the blob of this digest |
//! | `containerd.io/gc.ref.snapshot.<snapshotter>[/x]` | all | keeps the snapshot of this key |
//! | `containerd.io/gc.ref.image[.x or /x]` | all | keeps the image of this name |
//! | `containerd.io/gc.ref.{mount,stream}[.x or /x]` | all | keeps the activated mount, or the stream, of this name |
//! | `containerd.io/gc.bref.{container,content,image}[.x or /x]` | content, snapshots, images | lives while the named object does |
//! | `containerd.io/gc.bref.snapshot.<snapshotter>[/x]` | same | lives while the named snapshot does |
//! | `containerd.io/gc.cond.snapshot.<snapshotter>[/x]` | same | as the back reference, while a condition holds |
//! | `containerd.io/gc.expire` | leases, images | RFC 3339; no root from then on |
//! | `containerd.io/gc.flat` | leases | members keep no more than themselves and snapshot parents |
//!
//! The value of a condition is `usedat<DURATION|KEY` with a duration in Go's form: it holds while
//! the label `containerd.io/gc.cond.value-usedat` (RFC 3339) of the same object is less than
//! DURATION ago. What can't be parsed holds: garbage that stays is better than a loss.

use std::time::{Duration, SystemTime};

use gantry_core::{Labels, timestamp};

use super::node::NodeKind;

/// When a lease or image expires (RFC 3339).
pub const LABEL_EXPIRE: &str = "containerd.io/gc.expire";

const ROOT: &str = "containerd.io/gc.root";
const FLAT: &str = "containerd.io/gc.flat";
const REF: &str = "containerd.io/gc.ref.";
const BACK_REF: &str = "containerd.io/gc.bref.";
const CONDITION: &str = "containerd.io/gc.cond.";
const USED_AT: &str = "containerd.io/gc.cond.value-usedat";
const PREFIX: &str = "containerd.io/gc.";

/// Whether the object is a root.
pub(crate) fn is_root(labels: &Labels) -> bool {
    labels.contains_key(ROOT)
}

/// Whether a lease keeps no more than its members.
pub(crate) fn is_flat(labels: &Labels) -> bool {
    labels.contains_key(FLAT)
}

/// When the object expires. A time that does not parse never comes.
pub(crate) fn expiry(labels: &Labels) -> Option<SystemTime> {
    timestamp::parse(labels.get(LABEL_EXPIRE)?).ok()
}

/// Visits what the labels refer to.
pub(crate) fn references(labels: &Labels, visit: &mut dyn FnMut(NodeKind, &str)) {
    for (label, value) in ours(labels) {
        if let Some(kind) = label.strip_prefix(REF).and_then(target) {
            visit(kind, value);
        }
    }
}

/// Visits the objects whose life keeps this one alive at `now`.
pub(crate) fn back_references(
    labels: &Labels,
    now: SystemTime,
    visit: &mut dyn FnMut(NodeKind, &str),
) {
    for (label, value) in ours(labels) {
        if let Some(kind) = label.strip_prefix(BACK_REF).and_then(target) {
            // Nothing lives with what has no record.
            if !matches!(kind, NodeKind::Mount | NodeKind::Stream) {
                visit(kind, value);
            }
        } else if let Some(kind @ NodeKind::Snapshot(_)) =
            label.strip_prefix(CONDITION).and_then(target)
        {
            let (condition, key) = value.split_once('|').unwrap_or(("", value));
            if holds(condition, labels, now) {
                visit(kind, key);
            }
        }
    }
}

/// The labels of the collector, a stretch of the ordered map.
fn ours(labels: &Labels) -> impl Iterator<Item = (&String, &String)> {
    labels.range(PREFIX.to_owned()..).take_while(|(label, _)| label.starts_with(PREFIX))
}

/// The kind that the rest of a label names.
fn target(rest: &str) -> Option<NodeKind> {
    if let Some(snapshotter) = rest.strip_prefix("snapshot.") {
        let name = snapshotter.split('/').next().unwrap_or_default();
        return (!name.is_empty()).then(|| NodeKind::Snapshot(name.to_owned()));
    }
    match rest.split(['.', '/']).next()? {
        "content" => Some(NodeKind::Content),
        "image" => Some(NodeKind::Image),
        "container" => Some(NodeKind::Container),
        "mount" => Some(NodeKind::Mount),
        "stream" => Some(NodeKind::Stream),
        _ => None,
    }
}

fn holds(condition: &str, labels: &Labels, now: SystemTime) -> bool {
    let Some(limit) = condition.strip_prefix("usedat<").and_then(go_duration) else { return true };
    let used = labels.get(USED_AT).and_then(|at| timestamp::parse(at).ok());
    // A time of use in the future counts as now.
    used.is_none_or(|used| now.duration_since(used).unwrap_or_default() < limit)
}

/// A duration in Go's form, such as `1h30m` or `1.5s`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit_secs = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let secs = number.parse::<f64>().ok()? * unit_secs;
        total = total.checked_add(Duration::try_from_secs_f64(secs).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn collect(visit: impl FnOnce(&mut dyn FnMut(NodeKind, &str))) -> Vec<(NodeKind, String)> {
        let mut found = Vec::new();
        visit(&mut |kind, key| found.push((kind, key.to_owned())));
        found
    }

    #[test]
    fn forward_references() {
        let labels = labels(&[
            ("containerd.io/gc.ref.content", "d0"),
            ("containerd.io/gc.ref.content.config", "d1"),
            ("containerd.io/gc.ref.content/l.0", "d2"),
            ("containerd.io/gc.ref.contentious", "no"),
            ("containerd.io/gc.ref.image.x", "i"),
            ("containerd.io/gc.ref.snapshot.overlayfs", "k0"),
            ("containerd.io/gc.ref.snapshot.my.fs/x", "k1"),
            ("containerd.io/gc.ref.snapshot.", "no"),
            ("containerd.io/gc.ref.stream", "s"),
            ("containerd.io/gc.ref.streams", "no"),
            ("containerd.io/gc.ref.mount.root", "m"),
            ("containerd.io/gc.bref.content", "no"),
            ("other", "no"),
        ]);
        let snapshot = |name: &str| NodeKind::Snapshot(name.to_owned());
        let want = [
            (NodeKind::Content, "d0"),
            (NodeKind::Content, "d1"),
            (NodeKind::Content, "d2"),
            (NodeKind::Image, "i"),
            (NodeKind::Stream, "s"),
            (NodeKind::Mount, "m"),
            (snapshot("my.fs"), "k1"),
            (snapshot("overlayfs"), "k0"),
        ];
        let mut found = collect(|visit| references(&labels, visit));
        found.sort();
        let mut want = want.map(|(kind, key)| (kind, key.to_owned()));
        want.sort();
        assert_eq!(found, want);
    }

    #[test]
    fn nothing_lives_with_a_mount_or_a_stream() {
        let labels = labels(&[
            ("containerd.io/gc.bref.mount", "no"),
            ("containerd.io/gc.bref.stream.x", "no"),
            ("containerd.io/gc.bref.container/x", "c"),
        ]);
        let found = collect(|visit| back_references(&labels, SystemTime::UNIX_EPOCH, visit));
        assert_eq!(found, [(NodeKind::Container, "c".to_owned())]);
    }

    #[test]
    fn conditions() {
        let now = timestamp::parse("2026-01-01T12:00:00Z").unwrap();
        let label = "containerd.io/gc.cond.snapshot.overlayfs";
        for (value, used, want) in [
            ("usedat<2h|k", Some("2026-01-01T10:30:00Z"), true),
            ("usedat<1h30m|k", Some("2026-01-01T10:30:00Z"), false),
            ("usedat<1h|k", Some("2027-01-01T00:00:00Z"), true),
            ("usedat<1h|k", None, true),
            ("usedat<soon|k", Some("2026-01-01T10:30:00Z"), true),
        ] {
            let mut labels = labels(&[(label, value)]);
            labels.extend(used.map(|at| (USED_AT.to_owned(), at.to_owned())));
            let found = collect(|visit| back_references(&labels, now, visit));
            assert_eq!(!found.is_empty(), want, "{value} {used:?}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(go_duration("1h2m3.5s"), Some(Duration::from_millis(3_723_500)));
        assert_eq!(go_duration("10ms"), Some(Duration::from_millis(10)));
        for bad in ["", "1", "h", "1x", "1h-2m"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
