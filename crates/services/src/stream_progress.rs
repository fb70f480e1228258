//! Progress of a transfer on the wire.

use gantry_api::containerd::types::transfer as wire;
use gantry_images::Progress;

use crate::convert;

/// The message of one update.
pub(crate) fn to_wire(update: Progress) -> wire::Progress {
    wire::Progress {
        event: update.stage.event().to_owned(),
        name: update.name,
        parents: update.parents,
        progress: convert::size_to_wire(update.done),
        total: convert::size_to_wire(update.total),
        desc: update.descriptor.map(convert::descriptor_to_wire),
    }
}
