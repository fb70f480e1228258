//! Layers through the public interface: what they make, what they must not do, and whether other
//! tools agree.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod breakouts;
mod damage;
mod gnu;
mod many;
mod overlay;
mod roundtrip;
mod stacks;
mod support;
mod trees;
mod userns;
mod whiteouts;
