//! The metadata store over an in-memory database and real backends.
#![allow(clippy::unwrap_used)]

mod content;
mod content_races;
mod gc;
mod gc_calls;
mod gc_members;
mod gc_model;
mod layout;
mod reconcile;
mod records;
mod snapshots;
mod suite;
mod support;
