//! Black-box scenarios: real clients, a real registry and real runc against the daemon.
//!
//! All of it is in `tests/it`. A scenario is one function over a `Rig`; the `scenarios!` macro runs
//! it with Debian's `ctr` and with our `gantry` on gantryd, and with `ctr` on Debian's containerd
//! as the oracle that proves the expectation itself.
#![forbid(unsafe_code)]
