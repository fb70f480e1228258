//! Packing messages into `Any`.

use bytes::Buf;
use gantry_errdefs::{Error, Result};
use prost::Name;
use prost_types::Any;

/// The type URL under which containerd's clients pack a message: its full name, bare.
///
/// Protobuf's own packing puts `type.googleapis.com/` in front; containerd does not, and its
/// clients look types up by the exact text.
pub trait TypeUrl: Name {
    /// `package.Message`.
    fn type_url_bare() -> String {
        Self::full_name()
    }
}

impl<M: Name> TypeUrl for M {}

/// Messages to and from `Any`, with bare type URLs.
pub trait Payload: Sized {
    /// Packs `message`.
    fn pack<M: Name>(message: &M) -> Self;

    /// Unpacks a message when the URL names its type, with or without a host in front; none
    /// when it names another.
    ///
    /// # Errors
    /// InvalidArgument when the bytes are not such a message.
    fn unpack<M: Name + Default>(&self) -> Result<Option<M>>;
}

impl Payload for Any {
    fn pack<M: Name>(message: &M) -> Self {
        Self { type_url: M::type_url_bare(), value: message.encode_to_vec() }
    }

    fn unpack<M: Name + Default>(&self) -> Result<Option<M>> {
        unpack(&self.type_url, self.value.as_slice())
    }
}

/// [`Payload::unpack`] for whoever has the two fields.
pub(crate) fn unpack<M: Name + Default>(type_url: &str, value: impl Buf) -> Result<Option<M>> {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    if name != M::full_name() {
        return Ok(None);
    }
    let message = M::decode(value)
        .map_err(|e| Error::invalid_argument(format!("{name}: {e}")).with_source(e))?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::events::TaskExit;
    use crate::containerd::events::TaskOom;

    #[test]
    fn packing_uses_the_bare_name() {
        let exit = TaskExit { container_id: "c".into(), exit_status: 3, ..Default::default() };
        let any = Any::pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(any.unpack::<TaskExit>().expect("decodes"), Some(exit));
        assert_eq!(any.unpack::<TaskOom>().expect("another type"), None);
    }

    #[test]
    fn a_host_before_the_name_is_fine_and_bad_bytes_are_not() {
        let url = "type.googleapis.com/containerd.events.TaskExit".to_owned();
        let any = Any { type_url: url, value: vec![0xff] };
        assert!(any.unpack::<TaskExit>().expect_err("bad bytes").is_invalid_argument());
    }
}
