//! gRPC services: one file each, no logic of their own.
//!
//! A method takes the call's namespace and lease from its headers ([`call`]), converts the
//! message ([`convert`]), calls one noun and converts the answer. Errors carry their class and
//! text through `gantry_errdefs`. Answers in many messages are made as the client reads them, so
//! that nothing piles up behind a slow one.
#![forbid(unsafe_code)]

mod call;
mod convert;
mod events;
mod fields;
mod health;
mod introspection;
mod stream;
mod streaming;
mod version;
mod window;

pub use call::{LEASE_HEADER, NAMESPACE_HEADER};
pub use events::{EventsService, shim_events};
pub use fields::EventFields;
pub use health::HealthService;
pub use introspection::{IntrospectionService, Plugin, PluginDetails};
pub use streaming::{STREAMS_MAX, Stream, StreamReceiver, StreamSender, StreamingService, Streams};
pub use version::{COMPAT_VERSION, VersionService};
pub use window::{DATA_LEN_MAX, DataReader, DataWriter, WINDOW_LEN};
