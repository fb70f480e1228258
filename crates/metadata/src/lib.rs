//! The metadata store: who owns what, leases and garbage collection.
//!
//! [`Db`] gives one facade per noun. Every method takes the caller's
//! [`Context`](gantry_core::Context) (namespace and lease), checks what clients may send, and
//! answers with the error class they test for. The gRPC layer above converts and nothing else.
//!
//! # Invariants
//! * **Durable before visible.** Bytes are in the backend before the record that names them is
//!   committed, those of small blobs in the same commit; a call that returned success survives a
//!   power cut.
//! * **No I/O and no foreign call in a transaction.** Backends are called before (and undone when
//!   the record can't be written) or after (the trash, emptied by the collector).
//! * **Events after the commit**, in commit order, even when the caller has gone.
//! * **Calls that make something run to their end** even when cancelled half way.
//! * **Nothing live is collected**; the proof is in the `gc` module.
//!
//! # Keys
//! Parts are separated as [`gantry_store::Key`] does, drawn here with `/`. Values are protobuf
//! messages (`records.rs` holds the tags, which are the format), or empty for indexes.
//! ```text
//! meta1/                                              layout version 1
//!   namespace/<ns>                                    labels
//!   container/<ns>/<id>                               container
//!   image/<ns>/<name>                                 image
//!   lease/<ns>/<id>                                   lease
//!   lease-resource/<ns>/<lease>/<kind>/<id>           member of a lease
//!   sandbox/<ns>/<id>                                 sandbox
//!   blob/<ns>/<digest>                                blob
//!   blob-namespace/<digest>/<ns>                      who holds a blob
//!   blob-bytes/<digest>/<number>                      a small blob until its file is synced
//!   ingest/<ns>/<ref>                                 ingest without an open writer
//!   snapshot/<ns>/<snapshotter>/<key>                 snapshot
//!   snapshot-child/<ns>/<snapshotter>/<parent>/<key>  children of a snapshot
//!   backend-snapshot/<snapshotter>/<backend key>/<ns>/<key>
//!                                                     whose a backend's snapshot is
//!   sequence                                          big-endian u64: numbers below may be in use
//!   trash-blob/<digest>                               to be deleted in the backend
//!   trash-ingest/<backend ref>                        same
//!   trash-snapshot/<snapshotter>/<backend key>        same
//! ```
//! Backend names of ingests and snapshots are `<ns>/<number>/<ref or key>`; a number is used once.
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
mod stored;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod types;
mod upkeep;

/// For fuzz targets only.
#[doc(hidden)]
pub mod fuzz {
    use gantry_core::Labels;

    /// Reads the collector's labels among `labels`; returns how many objects they name.
    pub fn gc_labels(labels: &Labels) -> usize {
        crate::gc::read_labels(labels)
    }
}

pub use containers::Containers;
pub use content::{Content, ContentWriter};
pub use db::{Db, Options};
pub use event::{Event, EventSink, ExchangeSink, NoEvents};
pub use gc::{
    Gc, GcConfig, GcStats, GcTotals, LABEL_EXPIRE, Member, MemberKind, Members, Reconciled,
};
pub use images::Images;
pub use leases::Leases;
pub use namespaces::Namespaces;
pub use records::StoredContainer;
pub use sandboxes::Sandboxes;
pub use snapshots::Snapshots;
pub use stored::{StoredContainers, VisitStored};
pub use types::{
    Container, ContentInfo, Image, ImageDelete, ImageUpdate, Lease, NamespaceInfo, Resource,
    Runtime, Sandbox, SharingPolicy,
};
pub use upkeep::{BadBlob, BadLayer, BlobScan, LayerScan, Orphan, RemadeTree, Remaking, Upkeep};
