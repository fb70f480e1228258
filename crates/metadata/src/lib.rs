//! The metadata store: who owns what, leases and garbage collection.
