//! Bundles, shim start and reconnect, and the task client.
