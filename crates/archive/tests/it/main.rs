//! Layers through the public interface: what they make, what they must not do, and whether other
//! tools agree.

mod breakouts;
mod damage;
mod gnu;
mod overlay;
mod roundtrip;
mod stacks;
mod support;
mod trees;
mod whiteouts;
