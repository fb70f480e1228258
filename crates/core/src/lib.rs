//! Identifiers, digests, labels, filters, field masks, platforms and references.
//!
//! The plain types every other crate speaks in. Nothing here does I/O.
#![forbid(unsafe_code)]

mod any;
mod context;
mod descriptor;
mod digest;
pub mod identifiers;
pub mod labels;

pub use any::Any;
pub use context::{Context, Namespace};
pub use descriptor::{Descriptor, Platform, media_types};
pub use digest::{Algorithm, Digest, Digester};
pub use labels::Labels;
