//! The metadata store over an in-memory database and real backends.
#![allow(clippy::unwrap_used)]

mod containers;
mod content;
mod gc;
mod gc_calls;
mod gc_model;
mod images;
mod layout;
mod leases;
mod namespaces;
mod reconcile;
mod sandboxes;
mod snapshots;
mod suite;
mod support;
