//! gRPC services: one file each, no logic of their own.
