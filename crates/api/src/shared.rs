//! Messages that are sent to many.

use std::ops::Deref;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};

/// A message, or what it is on the wire: encoded once, for everybody it is sent to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shared<M> {
    message: M,
    /// Sent instead of the message.
    encoded: Option<Bytes>,
}

impl<M: Default> Shared<M> {
    /// To send what `encoded` says; it is not read, so the message here is empty.
    pub fn encoded(encoded: Bytes) -> Self {
        Self { message: M::default(), encoded: Some(encoded) }
    }
}

impl<M> Shared<M> {
    /// The message that was received.
    pub fn into_message(self) -> M {
        self.message
    }
}

impl<M> From<M> for Shared<M> {
    fn from(message: M) -> Self {
        Self { message, encoded: None }
    }
}

impl<M> Deref for Shared<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

impl<M: Message + Default> Message for Shared<M> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        match &self.encoded {
            Some(encoded) => buf.put_slice(encoded),
            None => self.message.encode_raw(buf),
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.message.merge_field(tag, wire_type, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.encoded.as_ref().map_or_else(|| self.message.encoded_len(), Bytes::len)
    }

    fn clear(&mut self) {
        *self = M::default().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::types::Envelope;

    #[test]
    fn both_forms_are_the_message_on_the_wire() {
        let message = Envelope { topic: "/a/b".into(), ..Envelope::default() };
        let wire = message.encode_to_vec();
        for shared in [Shared::from(message.clone()), Shared::encoded(wire.clone().into())] {
            assert_eq!(shared.encode_to_vec(), wire);
            assert_eq!(shared.encoded_len(), wire.len());
        }
        let received = Shared::<Envelope>::decode(wire.as_slice()).expect("decodes");
        assert_eq!(received.topic, "/a/b");
        assert_eq!(received.into_message(), message);
    }
}
