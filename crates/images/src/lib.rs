//! Manifests, platforms, unpacking and the transfer pipelines.
//!
//! [`Transfer`] moves images between registries, the image store and archives. It builds on the
//! metadata store (namespaced content, snapshots, leases), the registry client and the archive
//! code, and knows nothing of gRPC.
//!
//! A pull makes one pass over the bytes where it can: a layer is written to the content store and
//! unpacked while it arrives. Everything a transfer makes is under a lease until the image record
//! names it, so that the collector never sees half an image.
#![forbid(unsafe_code)]

mod budget;
mod content;
mod differ;
mod export;
mod flights;
mod import;
mod lease;
mod processors;
mod progress;
mod pull;
mod push;
mod read;
mod transfer;
mod unfinished;
mod unpack;
mod verifier;

pub use budget::{Budget, BudgetOptions};
pub use differ::{ApplyRequest, DiffRequest, Differ, Differs, ErofsDiffer, LayerDiffer};
pub use export::{ExportImage, ExportOptions, export};
pub use import::{ImageNames, ImportOptions, Imported, import, store_images};
pub use processors::{Processor, Processors};
pub use progress::{
    PENDING_UPDATES_MAX, Progress, ProgressReceiver, ProgressSink, Stage, progress_channel,
};
pub use pull::{DOWNLOADS_MAX_DEFAULT, PullOptions, PulledImage};
pub use push::{PushOptions, UPLOADS_MAX_DEFAULT};
pub use read::resolve_manifest;
pub use transfer::{
    CopyOptions, ImageReference, LayerSnapshot, ServedPlatforms, StoreOptions, Transfer,
    TransferOptions, UnpackTarget,
};
pub use unpack::{LayerSource, LayerTask, Unpacked, Unpacker};
pub use verifier::{VerifierOptions, Verifiers};
