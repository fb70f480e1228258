//! A stored container as a `containerd.services.containers.v1.Container`.

use std::time::SystemTime;

use bytes::BufMut;
use gantry_metadata::StoredContainer;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::convert;

/// Fields of the message; a test holds them to the generated type.
mod field {
    pub(super) const ID: u32 = 1;
    pub(super) const LABELS: u32 = 2;
    pub(super) const IMAGE: u32 = 3;
    pub(super) const RUNTIME: u32 = 4;
    pub(super) const SPEC: u32 = 5;
    pub(super) const SNAPSHOTTER: u32 = 6;
    pub(super) const SNAPSHOT_KEY: u32 = 7;
    pub(super) const CREATED_AT: u32 = 8;
    pub(super) const UPDATED_AT: u32 = 9;
    pub(super) const EXTENSIONS: u32 = 10;
    pub(super) const SANDBOX: u32 = 11;

    pub(super) const RUNTIME_NAME: u32 = 1;
    pub(super) const RUNTIME_OPTIONS: u32 = 2;
}

/// Writes the fields of the message, without its length.
pub(super) fn put(container: &StoredContainer<'_>, out: &mut Vec<u8>) {
    put_text(field::ID, container.id.as_bytes(), out);
    container.labels().for_each(|entry| put_bytes(field::LABELS, entry, out));
    put_text(field::IMAGE, container.image, out);
    put_runtime(container.runtime_name, container.runtime_options, out);
    if let Some(spec) = container.spec {
        put_bytes(field::SPEC, spec, out);
    }
    put_text(field::SNAPSHOTTER, container.snapshotter, out);
    put_text(field::SNAPSHOT_KEY, container.snapshot_key, out);
    put_time(field::CREATED_AT, container.created_at, out);
    put_time(field::UPDATED_AT, container.updated_at, out);
    container.extensions().for_each(|entry| put_bytes(field::EXTENSIONS, entry, out));
    put_text(field::SANDBOX, container.sandbox_id, out);
}

fn put_bytes(field: u32, bytes: &[u8], out: &mut impl BufMut) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

/// Empty text is not sent.
fn put_text(field: u32, text: &[u8], out: &mut impl BufMut) {
    if !text.is_empty() {
        put_bytes(field, text, out);
    }
}

fn put_runtime(name: &[u8], options: Option<&[u8]>, out: &mut impl BufMut) {
    let len = |bytes: &[u8]| 1 + encoded_len_varint(bytes.len() as u64) + bytes.len();
    let name_len = if name.is_empty() { 0 } else { len(name) };
    encode_key(field::RUNTIME, WireType::LengthDelimited, out);
    encode_varint((name_len + options.map_or(0, len)) as u64, out);
    put_text(field::RUNTIME_NAME, name, out);
    if let Some(options) = options {
        put_bytes(field::RUNTIME_OPTIONS, options, out);
    }
}

fn put_time(field: u32, time: SystemTime, out: &mut impl BufMut) {
    let Some(time) = convert::time_to_wire(time) else { return };
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(time.encoded_len() as u64, out);
    time.encode_raw(out);
}
