//! Transfers between registries, the image store and archives.
#![allow(clippy::unwrap_used)]

mod archives;
mod erofs;
mod given_up;
mod pull_faults;
mod pulls;
mod pushes;
mod random_faults;
mod repair;
mod rig;
mod served;
mod shared;
mod side_by_side;
mod streams;
mod support;
mod unpack;
