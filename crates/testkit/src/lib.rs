//! Test harness: image builder, registry, daemons and fault plans.
