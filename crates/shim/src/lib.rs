//! containerd-shim-runc-v2: one small process per container or pod.
