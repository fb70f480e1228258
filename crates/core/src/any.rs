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

impl Any {
    /// The full name of the message that the URL names, without the host that some packers put in
    /// front.
    pub fn message_name(&self) -> &str {
        self.type_url.rsplit('/').next().unwrap_or_default()
    }
}
