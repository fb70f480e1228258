//! How long the parts of a call take, in the log when `-debug` was given: `phase=mount micros=95`.

use std::time::Instant;

/// A part that is being done; ends when dropped.
#[derive(Debug)]
pub(crate) struct Phase {
    name: &'static str,
    begin: Instant,
}

impl Phase {
    /// Begins.
    pub(crate) fn begin(name: &'static str) -> Self {
        Self { name, begin: Instant::now() }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        let (name, micros) = (self.name, self.begin.elapsed().as_micros());
        crate::log::debugging!("phase={name} micros={micros}");
    }
}
