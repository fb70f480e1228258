//! Manifests, platforms, unpacking and the transfer pipelines.
