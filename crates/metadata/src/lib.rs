//! The metadata store: who owns what, leases and garbage collection.
#![forbid(unsafe_code)]

mod containers;
mod content;
mod db;
mod event;
mod filter;
mod gc;
mod images;
mod inflight;
mod keys;
mod leases;
mod namespaces;
mod records;
mod sandboxes;
mod snapshots;
mod types;

pub use containers::Containers;
pub use content::{Content, ContentWriter};
pub use db::{Db, Options};
pub use event::{Event, EventSink, ExchangeSink, NoEvents};
pub use gc::{Gc, GcConfig, GcStats, LABEL_EXPIRE};
pub use images::Images;
pub use leases::Leases;
pub use namespaces::Namespaces;
pub use sandboxes::Sandboxes;
pub use snapshots::Snapshots;
pub use types::{
    Container, ContentInfo, Image, ImageDelete, ImageUpdate, Lease, NamespaceInfo, Resource,
    Runtime, Sandbox, SharingPolicy,
};
