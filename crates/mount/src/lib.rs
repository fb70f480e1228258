//! Mounts: types, mounting, unmounting, temporary mounts.
