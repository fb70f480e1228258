//! The Snapshotter trait, its conformance suite, and the overlayfs and native snapshotters.
