//! Mount options in the words of `mount(8)`.

/// Parsed options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What is left for the filesystem, in order.
    pub data: Vec<String>,
}
