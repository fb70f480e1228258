//! What a call carries besides its message: namespace and lease.

use gantry_core::{Context, Namespace};
use gantry_errdefs::{Error, Result};
use tonic::Request;
use tonic::metadata::MetadataMap;

/// Header that names the namespace of a call.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";

/// Header that names the lease new objects join.
pub const LEASE_HEADER: &str = "containerd-lease";

/// The namespace and lease of a call.
///
/// # Errors
/// FailedPrecondition `namespace is required` without the header, InvalidArgument for a name that
/// breaks the identifier rules.
pub(crate) fn context<T>(request: &Request<T>) -> Result<Context> {
    let metadata = request.metadata();
    let namespace =
        namespace(metadata)?.ok_or_else(|| Error::failed_precondition("namespace is required"))?;
    Ok(Context { namespace, lease: header(metadata, LEASE_HEADER)? })
}

/// The namespace of a call that may do without one.
///
/// # Errors
/// InvalidArgument for a name that breaks the identifier rules.
pub(crate) fn namespace(metadata: &MetadataMap) -> Result<Option<Namespace>> {
    header(metadata, NAMESPACE_HEADER)?.map(Namespace::new).transpose()
}

fn header(metadata: &MetadataMap, name: &str) -> Result<Option<String>> {
    let Some(value) = metadata.get(name) else { return Ok(None) };
    let text = value
        .to_str()
        .map_err(|_| Error::invalid_argument(format!("header {name}: not printable text")))?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// The same call to another process that serves the same API: namespace and lease go along.
pub(crate) fn onward<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for name in [NAMESPACE_HEADER, LEASE_HEADER] {
        if let Some(value) = metadata.get(name) {
            request.metadata_mut().insert(name, value.clone());
        }
    }
    request
}

/// The message field that a request cannot do without.
///
/// # Errors
/// InvalidArgument naming the field.
pub(crate) fn required<T>(field: Option<T>, name: &str) -> Result<T> {
    field.ok_or_else(|| Error::invalid_argument(format!("{name} must be set")))
}
