//! Both forms of the interface against Debian's containerd and gantryd: the same stories.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cancel;
mod checkpoint;
mod flat;
mod objects;
mod restart;
mod support;
