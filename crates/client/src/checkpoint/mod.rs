//! Checkpoints as images: the processes of a container, its spec, its image and what it changed of
//! its root filesystem, under one index that can be pushed, pulled and restored from.
//!
//! The layout is that of Go's client, so that each restores what the other has checkpointed. Go
//! has two forms, of a task and of a container, that say some things in different places; what is
//! written here has the annotations and parts of both.

mod save;
mod saved;

pub use save::CheckpointImageOptions;
pub(crate) use saved::Saved;

/// Media type of the processes of a container: a tar of what criu writes.
pub const CRIU_MEDIA_TYPE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// Media types of the other parts. Each is an encoded `google.protobuf.Any`: the spec, how the
/// checkpoint was taken, and the options of the runtime.
const SPEC_MEDIA_TYPE: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
const OPTIONS_MEDIA_TYPE: &str = "application/vnd.containerd.container.checkpoint.options.v1+proto";
const RUNTIME_OPTIONS_MEDIA_TYPE: &str =
    "application/vnd.containerd.container.checkpoint.runtime.options+proto";

/// The image's name, as the checkpoint of a task has it and as that of a container has it.
const IMAGE_ANNOTATIONS: [&str; 2] = ["image.name", "org.opencontainers.image.ref.name"];
const RUNTIME_ANNOTATION: &str = "io.containerd.checkpoint.runtime";
const SNAPSHOTTER_ANNOTATION: &str = "io.containerd.checkpoint.snapshotter";

/// Marks the records of images that are checkpoints.
const CHECKPOINT_LABEL: (&str, &str) = ("containerd.io/checkpoint", "true");
