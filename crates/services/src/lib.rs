//! gRPC services: one file each, no logic of their own.
//!
//! A method takes the call's namespace and lease from its headers (`call`), converts the
//! message (`convert`), calls one noun and converts the answer. Errors carry their class and
//! text through `gantry_errdefs`. Answers in many messages are made as the client reads them, so
//! that nothing piles up behind a slow one.
#![forbid(unsafe_code)]

mod call;
mod containers;
mod content;
mod convert;
mod diff;
mod doctor;
mod documents;
mod encode;
mod events;
mod fields;
mod flushes;
mod health;
mod images;
mod introspection;
mod leases;
mod listing;
mod metrics;
mod mounts;
mod namespaces;
mod runtime_info;
mod sandbox_controller;
mod sandboxes;
mod shims;
mod snapshots;
mod stream;
mod stream_progress;
mod streaming;
mod tasks;
mod transfer;
mod version;
mod window;

pub use call::{LEASE_HEADER, NAMESPACE_HEADER};
pub use containers::ContainersService;
pub use content::ContentService;
pub use diff::DiffService;
pub use doctor::DoctorService;
pub use documents::DocumentsService;
pub use encode::encode_event;
pub use events::EventsService;
pub use fields::EventFields;
pub use flushes::Flushes;
pub use health::HealthService;
pub use images::ImagesService;
pub use introspection::{IntrospectionService, Plugin, PluginDetails};
pub use leases::LeasesService;
pub use listing::WithListing;
pub use metrics::{Call, Calls, Messages, Metrics};
pub use mounts::MountsService;
pub use namespaces::NamespacesService;
pub use runtime_info::RuntimeDetails;
pub use sandbox_controller::SandboxControllerService;
pub use sandboxes::SandboxStoreService;
pub use shims::ShimsService;
pub use snapshots::SnapshotsService;
pub use streaming::{STREAMS_MAX, Stream, StreamReceiver, StreamSender, StreamingService, Streams};
pub use tasks::TasksService;
pub use transfer::TransferService;
pub use version::{COMPAT_VERSION, VersionService};
pub use window::{DATA_LEN_MAX, DataReader, DataWriter, WINDOW_LEN};
