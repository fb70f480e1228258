//! Tar layers: apply and diff with OCI whiteouts.
//!
//! [`apply`] unpacks one layer of an image onto a directory in a single pass: the bytes are
//! inflated, digested (the diff ID) and written while they arrive. [`diff()`] is the way back: it
//! compares two trees, or reads the upper directory of an overlay, and writes a deterministic
//! layer. Both speak the two spellings of "this name is deleted": the `.wh.` entries of layers and
//! the character devices and xattrs of overlayfs.
//!
//! What a layer says is never trusted. Every path is resolved by us, one name at a time, inside
//! the directory given (`openat2` with `RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS` for what is
//! reached, single names relative to directory handles for what is changed); symlinks are
//! followed as a container would, with the directory as its root. A bad archive is
//! InvalidArgument and names the entry; every limit is in [`Limits`].
//!
//! Nothing here knows of images, snapshots or content stores: callers are `gantry-images`
//! (unpacking) and the diff service. All of it blocks: call it from `spawn_blocking`.
#![forbid(unsafe_code)]

mod apply;
mod attrs;
mod compression;
mod copyup;
mod diff;
mod entry;
mod limits;
mod pipe;
mod remove;
pub mod tar;
mod view;

pub use apply::{Applied, ApplyOptions, Lowers, Target, Unsettled, apply, settle};
pub use compression::{Compression, Compressor, Decompressor};
pub use diff::{Changes, DiffOptions, Diffed, diff};
pub use limits::Limits;

/// What stands before a name to mark it deleted in a layer (OCI image spec, layer.md).
pub const WHITEOUT_PREFIX: &str = ".wh.";

/// The name that hides all of a directory's older children (OCI image spec, layer.md).
pub const WHITEOUT_OPAQUE: &str = ".wh..wh..opq";
