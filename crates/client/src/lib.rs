//! The client library: containers, tasks, images, leases and events.
