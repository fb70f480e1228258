//! Identifiers, digests, labels, filters, field masks, platforms and references.
//!
//! The plain types every other crate speaks in. Nothing here does I/O.
#![forbid(unsafe_code)]

mod any;
mod context;
pub mod deadlines;
mod descriptor;
mod digest;
pub mod fieldmask;
pub mod filters;
pub mod identifiers;
pub mod image;
pub mod labels;
pub mod platforms;
pub mod reference;
pub mod sizes;
pub mod timestamp;

pub use any::Any;
pub use context::{Context, Namespace};
pub use descriptor::{Descriptor, Platform, media_types};
pub use digest::{Algorithm, Digest, Digester};
pub use labels::Labels;
pub use reference::Reference;
