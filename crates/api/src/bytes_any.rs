//! `Any` around large payloads.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use gantry_errdefs::Result;
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message, Name};

use crate::any::{self, Payload, TypeUrl as _};
use crate::containerd::types::transfer::Data;

/// Field `type_url` of `google.protobuf.Any`.
const TYPE_URL: u32 = 1;

/// Field `value` of `google.protobuf.Any`.
const VALUE: u32 = 2;

/// Field `data` of [`Data`].
const DATA: u32 = 1;

/// `google.protobuf.Any` whose value is not copied when it is decoded, nor when bytes are packed
/// ([`BytesAny::data`]). The same on the wire.
#[derive(Clone, Debug, Default)]
pub struct BytesAny {
    /// The type of the value, as in `Any`.
    pub type_url: String,
    /// What the value begins with.
    head: Bytes,
    /// The rest of the value.
    rest: Bytes,
}

impl BytesAny {
    /// A value of the type that `type_url` names.
    pub fn new(type_url: String, value: Bytes) -> Self {
        Self { type_url, head: Bytes::new(), rest: value }
    }

    /// `data`, packed as a [`Data`].
    pub fn data(data: Bytes) -> Self {
        let mut head = BytesMut::new();
        if !data.is_empty() {
            encoding::encode_key(DATA, WireType::LengthDelimited, &mut head);
            encoding::encode_varint(data.len() as u64, &mut head);
        }
        Self { type_url: Data::type_url_bare(), head: head.freeze(), rest: data }
    }

    fn value(&self) -> impl Buf {
        self.head.clone().chain(self.rest.clone())
    }
}

impl PartialEq for BytesAny {
    fn eq(&self, other: &Self) -> bool {
        let value = |any: &Self| any.value().copy_to_bytes(any.value().remaining());
        self.type_url == other.type_url && value(self) == value(other)
    }
}

impl Payload for BytesAny {
    fn pack<M: Name>(message: &M) -> Self {
        Self::new(M::type_url_bare(), message.encode_to_vec().into())
    }

    fn unpack<M: Name + Default>(&self) -> Result<Option<M>> {
        any::unpack(&self.type_url, self.value())
    }
}

impl Message for BytesAny {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.type_url.is_empty() {
            encoding::string::encode(TYPE_URL, &self.type_url, buf);
        }
        let value = self.value();
        if value.has_remaining() {
            encoding::encode_key(VALUE, WireType::LengthDelimited, buf);
            encoding::encode_varint(value.remaining() as u64, buf);
            buf.put(value);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> std::result::Result<(), DecodeError> {
        match tag {
            TYPE_URL => encoding::string::merge(wire_type, &mut self.type_url, buf, ctx),
            VALUE => {
                self.head = Bytes::new();
                encoding::bytes::merge(wire_type, &mut self.rest, buf, ctx)
            }
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let mut len = 0;
        if !self.type_url.is_empty() {
            len += encoding::string::encoded_len(TYPE_URL, &self.type_url);
        }
        let value = self.head.len() + self.rest.len();
        if value > 0 {
            len += encoding::key_len(VALUE) + encoding::encoded_len_varint(value as u64) + value;
        }
        len
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;
    use crate::containerd::types::transfer::WindowUpdate;

    #[test]
    fn it_is_an_any_on_the_wire() {
        let data = Data { data: Bytes::from(vec![7; 300]) };
        let update = WindowUpdate { update: 5 };
        let empty = Data::default();
        for (ours, any) in [
            (BytesAny::data(data.data.clone()), Any::pack(&data)),
            (BytesAny::pack(&data), Any::pack(&data)),
            (BytesAny::data(Bytes::new()), Any::pack(&empty)),
            (BytesAny::pack(&update), Any::pack(&update)),
            (BytesAny::default(), Any::default()),
        ] {
            let encoded = any.encode_to_vec();
            assert_eq!(ours.encode_to_vec(), encoded);
            assert_eq!(ours.encoded_len(), encoded.len());
            assert_eq!(BytesAny::decode(encoded.as_slice()).expect("decodes"), ours);
        }
    }

    #[test]
    fn what_was_received_is_unpacked_without_a_copy() {
        let data = Data { data: Bytes::from(vec![7; 300]) };
        let encoded = Bytes::from(Any::pack(&data).encode_to_vec());
        let any = BytesAny::decode(encoded.clone()).expect("decodes");
        let unpacked = any.unpack::<Data>().expect("good bytes").expect("of that type");
        assert_eq!(unpacked, data);
        assert!(encoded.as_ptr_range().contains(&unpacked.data.as_ptr()));
        assert_eq!(BytesAny::data(data.data.clone()).unpack::<Data>().expect("good"), Some(data));
        assert_eq!(any.unpack::<WindowUpdate>().expect("another type"), None);
    }
}
