//! Image archives: OCI image layouts and docker's, read and written as tar streams.
//!
//! [`read`] takes an archive as it comes, compressed or not, and hands its blobs to a [`Blobs`];
//! what they mean is known at the end, when `oci-layout`, `index.json` and `manifest.json` have been
//! seen, in whatever order ([`Archived::contents`]). [`ArchiveWriter`] is the way back.
//!
//! Nothing here knows where blobs are kept: the daemon has its content store (`gantry-images`), the
//! client library has the daemon's (`gantry-client`).
#![forbid(unsafe_code)]

mod docker;
mod read;
mod write;

pub use docker::DockerImage;
pub use read::{Archived, Blobs, Contents, Stored, read};
pub use write::{ArchiveOut, ArchiveWriter, named};
