//! Values with their type beside them: `google.protobuf.Any` as containerd uses it.
//!
//! Messages are packed as protobuf under their full name, without the host part that other users
//! of `Any` put in front. The runtime spec and its parts are JSON under URLs of their own.

use gantry_core::Any;
use gantry_errdefs::{Error, Result};
use gantry_oci::{LinuxResources, PROCESS_TYPE_URL, RESOURCES_TYPE_URL, SPEC_TYPE_URL};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::convert::any_out;

/// Packs a message, such as options of a runtime.
pub fn pack<M: prost::Name>(message: &M) -> Any {
    use gantry_api::TypeUrl;
    Any { type_url: M::type_url_bare(), value: message.encode_to_vec() }
}

/// Unpacks a message when `value` is of its type; None when it is of another.
///
/// # Errors
/// InvalidArgument when the bytes are not such a message.
pub fn unpack<M: prost::Name + Default>(value: &Any) -> Result<Option<M>> {
    use gantry_api::Payload as _;
    any_out(value).unpack()
}

/// Whether `value` is a message of type `M`.
pub fn is<M: prost::Name>(value: &Any) -> bool {
    value.message_name() == M::full_name()
}

/// Packs a value as JSON under `type_url`.
///
/// # Errors
/// InvalidArgument for a value that has no JSON.
pub fn pack_json<T: Serialize>(type_url: impl Into<String>, value: &T) -> Result<Any> {
    let type_url = type_url.into();
    let bad = |e| Error::invalid_argument(format!("value of type {type_url:?}: {e}"));
    let value = serde_json::to_vec(value).map_err(bad)?;
    Ok(Any { type_url, value })
}

/// Unpacks JSON when `value` is of type `type_url`; None when it is of another.
///
/// # Errors
/// InvalidArgument when the bytes are not JSON of a `T`.
pub fn unpack_json<T: DeserializeOwned>(type_url: &str, value: &Any) -> Result<Option<T>> {
    if value.type_url != type_url {
        return Ok(None);
    }
    let bad = |e| Error::invalid_argument(format!("value of type {type_url:?}: {e}"));
    serde_json::from_slice(&value.value).map(Some).map_err(bad)
}

/// Packs a runtime spec as container records have it.
///
/// # Errors
/// Internal when it can't be encoded.
pub fn pack_spec(spec: &gantry_oci::Spec) -> Result<Any> {
    Ok(Any { type_url: SPEC_TYPE_URL.to_owned(), value: gantry_oci::to_json(spec)? })
}

/// Packs the process of an exec.
///
/// # Errors
/// Internal when it can't be encoded.
pub fn pack_process(process: &gantry_oci::Process) -> Result<Any> {
    Ok(Any { type_url: PROCESS_TYPE_URL.to_owned(), value: gantry_oci::to_json(process)? })
}

/// Packs resources of a task's update.
///
/// # Errors
/// Internal when it can't be encoded.
pub fn pack_resources(resources: &LinuxResources) -> Result<Any> {
    Ok(Any { type_url: RESOURCES_TYPE_URL.to_owned(), value: gantry_oci::to_json(resources)? })
}

#[cfg(test)]
mod tests {
    use gantry_api::containerd::events::{TaskExit, TaskStart};

    use super::*;

    #[test]
    fn messages_come_back() {
        let message = TaskStart { container_id: "c".into(), pid: 7 };
        let packed = pack(&message);
        assert_eq!(packed.type_url, "containerd.events.TaskStart");
        assert!(is::<TaskStart>(&packed) && !is::<TaskExit>(&packed));
        assert_eq!(unpack::<TaskStart>(&packed).unwrap(), Some(message.clone()));
        assert_eq!(unpack::<TaskExit>(&packed).unwrap(), None);
        let hosted = Any { type_url: format!("type.googleapis.com/{}", packed.type_url), ..packed };
        assert_eq!(unpack::<TaskStart>(&hosted).unwrap(), Some(message));
        let damaged = Any { value: vec![0xff], ..hosted };
        assert!(unpack::<TaskStart>(&damaged).unwrap_err().is_invalid_argument());
    }

    #[test]
    fn json_comes_back() {
        let packed = pack_json("example.com/list", &vec![1, 2]).unwrap();
        assert_eq!(unpack_json::<Vec<u8>>("example.com/list", &packed).unwrap(), Some(vec![1, 2]));
        assert_eq!(unpack_json::<Vec<u8>>("example.com/other", &packed).unwrap(), None);
        assert!(unpack_json::<String>("example.com/list", &packed).is_err());
    }
}
