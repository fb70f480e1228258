//! The real binary with real runc.
