//! The embedded key-value database: MVCC snapshots and group-committed writes.
