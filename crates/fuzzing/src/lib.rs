//! What a fuzz target checks: one function for each, over any bytes.
//!
//! The targets in `fuzz/` (libFuzzer; a workspace of its own) are one line each around these, and
//! the property tests of this crate run the same functions on stable, over bytes made to come
//! close to what is valid. A function returns if all is well and panics if not: bytes from
//! outside may be refused, never cause a panic, and what is accepted keeps its promises.
#![forbid(unsafe_code)]

mod archive;
mod database;
mod text;

pub use archive::tar;
pub use database::database;
pub use text::{config, filters, gc_labels, hosts, manifests, references};

/// A function over any bytes.
pub type Check = fn(&[u8]);

/// All of them, by the name of their target.
pub const ALL: [(&str, Check); 9] = [
    ("config", config),
    ("database", database),
    ("filters", filters),
    ("gc_labels", gc_labels),
    ("hosts", hosts),
    ("manifests", manifests),
    ("references", references),
    ("tar", tar),
    ("ttrpc_frames", ttrpc_frames),
];

/// Frames as a shim or a daemon may send them.
pub fn ttrpc_frames(data: &[u8]) {
    let bytes = gantry_ttrpc::fuzz::frames(data);
    assert!(bytes <= data.len(), "more payload than bytes");
}
