//! Typed opaque bytes.

/// A value whose type is named by a URL and whose bytes we pass through untouched
/// (`google.protobuf.Any`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Any {
    /// The type: a protobuf full name, or a `types.containerd.io/...` URL for JSON values.
    pub type_url: String,
    /// The encoded value, byte for byte as the client sent it.
    pub value: Vec<u8>,
}
