//! A container's record without making a container of it.
//!
//! Who lists ten thousand containers passes most of each record on as it is. This reads where the
//! fields are and copies none of them.

use std::time::SystemTime;

use gantry_errdefs::{Error, Result};
use prost::encoding::{WireType, decode_key, decode_varint};

use super::time;

/// A container as it is stored. Fields that are not set are empty. Text is UTF-8 unless the
/// record is damaged; nobody has looked.
#[derive(Clone, Debug)]
pub struct StoredContainer<'a> {
    /// Its name in its namespace.
    pub id: &'a str,
    /// Name of the image.
    pub image: &'a [u8],
    /// Name of the runtime.
    pub runtime_name: &'a [u8],
    /// Options of the runtime, as an encoded `google.protobuf.Any`.
    pub runtime_options: Option<&'a [u8]>,
    /// The spec, as an encoded `google.protobuf.Any`.
    pub spec: Option<&'a [u8]>,
    /// Name of the snapshotter.
    pub snapshotter: &'a [u8],
    /// The snapshot of its root.
    pub snapshot_key: &'a [u8],
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was changed last.
    pub updated_at: SystemTime,
    /// The sandbox it belongs to.
    pub sandbox_id: &'a [u8],
    record: &'a [u8],
}

/// Tags of [`super::ContainerRecord`]; a test holds them to it.
mod tag {
    pub(super) const LABELS: u32 = 1;
    pub(super) const IMAGE: u32 = 2;
    pub(super) const RUNTIME_NAME: u32 = 3;
    pub(super) const RUNTIME_OPTIONS: u32 = 4;
    pub(super) const SPEC: u32 = 5;
    pub(super) const SNAPSHOTTER: u32 = 6;
    pub(super) const SNAPSHOT_KEY: u32 = 7;
    pub(super) const CREATED_AT: u32 = 8;
    pub(super) const UPDATED_AT: u32 = 9;
    pub(super) const EXTENSIONS: u32 = 10;
    pub(super) const SANDBOX_ID: u32 = 11;
}

impl<'a> StoredContainer<'a> {
    /// Finds the fields.
    ///
    /// # Errors
    /// DataLoss when the record is damaged.
    pub(crate) fn parse(id: &'a str, record: &'a [u8]) -> Result<Self> {
        let mut stored = Self {
            id,
            image: &[],
            runtime_name: &[],
            runtime_options: None,
            spec: None,
            snapshotter: &[],
            snapshot_key: &[],
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            sandbox_id: &[],
            record,
        };
        let mut fields = Fields(record);
        while let Some(field) = fields.take().ok_or_else(|| damaged(id))? {
            match field {
                (tag::IMAGE, Value::Bytes(bytes)) => stored.image = bytes,
                (tag::RUNTIME_NAME, Value::Bytes(bytes)) => stored.runtime_name = bytes,
                (tag::RUNTIME_OPTIONS, Value::Bytes(bytes)) => stored.runtime_options = Some(bytes),
                (tag::SPEC, Value::Bytes(bytes)) => stored.spec = Some(bytes),
                (tag::SNAPSHOTTER, Value::Bytes(bytes)) => stored.snapshotter = bytes,
                (tag::SNAPSHOT_KEY, Value::Bytes(bytes)) => stored.snapshot_key = bytes,
                (tag::CREATED_AT, Value::Number(nanos)) => stored.created_at = time(nanos),
                (tag::UPDATED_AT, Value::Number(nanos)) => stored.updated_at = time(nanos),
                (tag::SANDBOX_ID, Value::Bytes(bytes)) => stored.sandbox_id = bytes,
                _ => {}
            }
        }
        Ok(stored)
    }

    /// Its labels, each an encoded entry of a protobuf map: key 1, value 2.
    pub fn labels(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.entries(tag::LABELS)
    }

    /// Its extensions, each an encoded entry of a protobuf map: key 1, value 2, which is a
    /// `google.protobuf.Any`.
    pub fn extensions(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.entries(tag::EXTENSIONS)
    }

    fn entries(&self, wanted: u32) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut fields = Fields(self.record);
        // It was walked to its end before.
        std::iter::from_fn(move || fields.take().flatten()).filter_map(move |field| match field {
            (tag, Value::Bytes(bytes)) if tag == wanted => Some(bytes),
            _ => None,
        })
    }
}

fn damaged(id: &str) -> Error {
    Error::data_loss(format!("container {id:?}: its record is damaged"))
}

/// What a field holds, as far as records have it.
enum Value<'a> {
    Bytes(&'a [u8]),
    Number(i64),
    /// Of a type that no record has had yet.
    Other,
}

/// The fields of an encoded message, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next one: `Some(None)` at the end, `None` for what is no message.
    #[allow(clippy::option_option, reason = "an error without a text, and the end")]
    fn take(&mut self) -> Option<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let (tag, kind) = decode_key(&mut self.0).ok()?;
        let value = match kind {
            WireType::Varint => Value::Number(decode_varint(&mut self.0).ok()?.cast_signed()),
            WireType::LengthDelimited => {
                let len = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                Value::Bytes(self.skip(len)?)
            }
            WireType::SixtyFourBit => self.skip(8).map(|_| Value::Other)?,
            WireType::ThirtyTwoBit => self.skip(4).map(|_| Value::Other)?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        Some(Some((tag, value)))
    }

    fn skip(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;

    use super::super::{AnyRecord, ContainerRecord};
    use super::*;

    fn any(text: &str) -> AnyRecord {
        AnyRecord { type_url: text.into(), value: vec![0xff, 0x00] }
    }

    fn record() -> ContainerRecord {
        ContainerRecord {
            labels: [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())].into(),
            image: "image".into(),
            runtime_name: "runtime".into(),
            runtime_options: Some(any("options")),
            spec: Some(any("spec")),
            snapshotter: "snapshotter".into(),
            snapshot_key: "key".into(),
            created_at: 1_500_000_001,
            updated_at: -1,
            extensions: BTreeMap::from([("e".to_owned(), any("extension"))]),
            sandbox_id: "sandbox".into(),
        }
    }

    #[test]
    fn every_field_is_where_the_record_has_it() {
        let (record, encoded) = (record(), record().encode_to_vec());
        let stored = StoredContainer::parse("id", &encoded).unwrap();
        assert_eq!(
            (stored.id, stored.image, stored.runtime_name),
            ("id", &b"image"[..], &b"runtime"[..])
        );
        assert_eq!(stored.runtime_options.unwrap(), any("options").encode_to_vec());
        assert_eq!(stored.spec.unwrap(), any("spec").encode_to_vec());
        assert_eq!((stored.snapshotter, stored.snapshot_key), (&b"snapshotter"[..], &b"key"[..]));
        assert_eq!(stored.sandbox_id, b"sandbox");
        assert_eq!(stored.created_at, time(record.created_at));
        assert_eq!(stored.updated_at, time(record.updated_at));
        // The entries alone make the same maps.
        let mut again = Vec::new();
        for (tag, entries) in [
            (tag::LABELS, stored.labels().collect::<Vec<_>>()),
            (tag::EXTENSIONS, stored.extensions().collect()),
        ] {
            for entry in entries {
                prost::encoding::encode_key(tag, WireType::LengthDelimited, &mut again);
                prost::encoding::encode_varint(entry.len() as u64, &mut again);
                again.extend_from_slice(entry);
            }
        }
        let again = ContainerRecord::decode(&*again).unwrap();
        assert_eq!((again.labels, again.extensions), (record.labels, record.extensions));
    }

    #[test]
    fn empty_and_damaged_records() {
        let stored = StoredContainer::parse("id", &[]).unwrap();
        assert!(stored.spec.is_none() && stored.image.is_empty() && stored.labels().count() == 0);
        let encoded = record().encode_to_vec();
        for cut in 1..encoded.len() {
            if let Err(err) = StoredContainer::parse("id", &encoded[..cut]) {
                assert!(err.is_data_loss(), "{err}");
            }
        }
        assert!(StoredContainer::parse("id", &[0x0b]).unwrap_err().is_data_loss(), "a group");
        assert!(
            StoredContainer::parse("id", &[0x12, 0x7f]).unwrap_err().is_data_loss(),
            "too short"
        );
    }
}
