//! The conformance suite of [`crate::Snapshotter`].
