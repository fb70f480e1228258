//! The manager over real shims and runc. Needs root, runc, busybox-static and Debian's
//! containerd-shim-runc-v2, and our own built before (`make build`).

mod fixture;
mod lifecycle;
