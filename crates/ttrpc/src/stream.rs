//! s
/// A stream.
#[derive(Debug)]
pub struct Stream;
