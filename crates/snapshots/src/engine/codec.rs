//! The value of a snapshot record.

use std::time::{Duration, SystemTime};

use gantry_core::Labels;
use gantry_errdefs::{Error, Result};
use prost::Message as _;

use super::records::Snapshot;
use super::summary::Summary;
use crate::{Info, Kind, LayerOrigin, Usage};

/// The value of a record. Fields are added, never renumbered.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(enumeration = "RecordKind", tag = "2")]
    kind: i32,
    #[prost(string, optional, tag = "3")]
    parent: Option<String>,
    /// Nearest first.
    #[prost(uint64, repeated, tag = "4")]
    parents: Vec<u64>,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: Labels,
    /// Nanoseconds since 1970.
    #[prost(uint64, tag = "6")]
    created: u64,
    /// Nanoseconds since 1970.
    #[prost(uint64, tag = "7")]
    updated: u64,
    #[prost(uint64, tag = "8")]
    inodes: u64,
    #[prost(uint64, tag = "9")]
    size: u64,
    #[prost(message, optional, tag = "10")]
    summary: Option<SummaryRecord>,
    #[prost(message, optional, tag = "11")]
    origin: Option<OriginRecord>,
}

/// The tree at its commit.
#[derive(Clone, PartialEq, prost::Message)]
struct SummaryRecord {
    #[prost(uint64, tag = "1")]
    names: u64,
    #[prost(uint64, tag = "2")]
    bytes: u64,
    /// 32 bytes; see [`super::summary`].
    #[prost(bytes = "vec", tag = "3")]
    sum: Vec<u8>,
}

/// What was unpacked.
#[derive(Clone, PartialEq, prost::Message)]
struct OriginRecord {
    #[prost(string, tag = "1")]
    diff_id: String,
    #[prost(string, tag = "2")]
    blob: String,
}

/// As in containerd's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum RecordKind {
    Unknown = 0,
    View = 1,
    Active = 2,
    Committed = 3,
}

pub(super) fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let info = &snapshot.info;
    let kind = match info.kind {
        Kind::View => RecordKind::View,
        Kind::Active => RecordKind::Active,
        Kind::Committed => RecordKind::Committed,
    };
    Record {
        id: snapshot.id,
        kind: kind.into(),
        parent: info.parent.clone(),
        parents: snapshot.parents.clone(),
        labels: info.labels.clone(),
        created: to_nanos(info.created),
        updated: to_nanos(info.updated),
        inodes: snapshot.usage.inodes,
        size: snapshot.usage.size,
        summary: snapshot.summary.map(|s| SummaryRecord {
            names: s.names,
            bytes: s.bytes,
            sum: s.sum.to_vec(),
        }),
        origin: snapshot.origin.as_ref().map(|o| OriginRecord {
            diff_id: o.diff_id.to_string(),
            blob: o.blob.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
    }
    .encode_to_vec()
}

impl SummaryRecord {
    fn read(self) -> Option<Summary> {
        let sum = self.sum.try_into().ok()?;
        Some(Summary { names: self.names, bytes: self.bytes, sum })
    }
}

impl OriginRecord {
    fn read(self) -> Option<LayerOrigin> {
        let blob = (!self.blob.is_empty()).then(|| self.blob.parse()).transpose().ok()?;
        Some(LayerOrigin { diff_id: self.diff_id.parse().ok()?, blob })
    }
}

/// # Errors
/// DataLoss when `value` is no record.
pub(super) fn decode(name: String, value: &[u8]) -> Result<Snapshot> {
    let damaged = || Error::data_loss(format!("record of snapshot {name:?} is damaged"));
    let record = Record::decode(value).map_err(|e| damaged().with_source(e))?;
    let kind = match record.kind() {
        RecordKind::View => Kind::View,
        RecordKind::Active => Kind::Active,
        RecordKind::Committed => Kind::Committed,
        RecordKind::Unknown => return Err(damaged()),
    };
    Ok(Snapshot {
        info: Info {
            kind,
            name,
            parent: record.parent,
            labels: record.labels,
            created: SystemTime::UNIX_EPOCH + Duration::from_nanos(record.created),
            updated: SystemTime::UNIX_EPOCH + Duration::from_nanos(record.updated),
        },
        id: record.id,
        parents: record.parents,
        usage: Usage { inodes: record.inodes, size: record.size },
        // Of a form we do not know: as good as none.
        summary: record.summary.and_then(SummaryRecord::read),
        origin: record.origin.and_then(OriginRecord::read),
    })
}

fn to_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_today_are_read_tomorrow() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 1);
        let snapshot = Snapshot {
            info: Info {
                kind: Kind::Committed,
                name: "name".into(),
                parent: Some("parent".into()),
                labels: Labels::from([("k".into(), "v".into())]),
                created: time,
                updated: time,
            },
            id: 7,
            parents: vec![5, 300],
            usage: Usage { inodes: 2, size: 4096 },
            summary: None,
            origin: None,
        };
        let bytes = encode(&snapshot);
        let golden = "080710031a06706172656e74220305ac022a060a016b12017630818090bbbad6adf00d\
                      38818090bbbad6adf00d4002488020";
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden);
        let back = decode("name".into(), &bytes).unwrap();
        assert_eq!(back.info, snapshot.info);
        assert_eq!((back.id, back.parents, back.usage), (7, vec![5, 300], snapshot.usage));
        let diff_id = gantry_core::Digest::of(b"tar");
        let whole = Snapshot {
            summary: Some(Summary { names: 3, bytes: 4, sum: [7; 32] }),
            origin: Some(LayerOrigin { diff_id: diff_id.clone(), blob: Some(diff_id) }),
            ..snapshot
        };
        let bytes = encode(&whole);
        let hex: String = bytes.iter().skip(golden.len() / 2).map(|b| format!("{b:02x}")).collect();
        assert!(hex.starts_with("5226080310041a20070707") && hex.contains("5a92010a47"), "{hex}");
        let back = decode("name".into(), &bytes).unwrap();
        assert_eq!((back.summary, back.origin), (whole.summary, whole.origin));
        assert!(decode("name".into(), b"\xff").unwrap_err().is_data_loss());
        assert!(decode("name".into(), b"").unwrap_err().is_data_loss());
    }
}
