//! Scenarios with real clients; see `rig.rs` for what runs where.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[macro_use]
mod rig;

mod checkpoint;
mod content;
mod crash;
mod dockerd;
mod doctor;
mod explain;
mod failpoints;
mod filesystems;
mod hostile;
mod images;
mod journal;
mod monitor;
mod policy;
mod power;
mod proxy;
mod pull;
mod records;
mod restart;
mod resume;
mod run;
mod shims;
mod snapshots;
mod tasks;
mod transfer;
mod upgrade;
mod vm;
mod wedge;
