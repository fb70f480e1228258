//! The manager over real shims and runc. Needs root, runc, busybox-static and Debian's
//! containerd-shim-runc-v2.

mod fixture;
mod lifecycle;
