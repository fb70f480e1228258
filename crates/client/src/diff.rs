//! Layers to filesystems and back.

use gantry_api::containerd::services::diff::v1 as wire;
use gantry_api::containerd::services::diff::v1::diff_client::DiffClient;
use gantry_core::{Descriptor, Labels};
use gantry_errdefs::Result;

use crate::client::{handle, service};
use crate::convert::{Mount, descriptor, descriptor_out, label_map, required, status};

handle! {
    /// The diff service: applies layers to mounts, makes layers from differences.
    Diff, diff
}

/// How a difference is stored.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Media type of the layer; empty for the daemon's default, gzip.
    pub media_type: String,
    /// Name of the write; empty for one the daemon invents.
    pub reference: String,
    /// Labels of the blob.
    pub labels: Labels,
}

impl Diff {
    /// Extracts the layer `layer` onto `mounts`; returns the descriptor of its plain tar.
    ///
    /// # Errors
    /// NotFound for a missing blob; Unimplemented for a media type nobody can read.
    pub async fn apply(&self, layer: &Descriptor, mounts: &[Mount]) -> Result<Descriptor> {
        let request = wire::ApplyRequest {
            diff: Some(descriptor_out(layer)),
            mounts: mounts.iter().cloned().map(Into::into).collect(),
            ..wire::ApplyRequest::default()
        };
        let answer = service!(self.client, DiffClient)
            .apply(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        descriptor(required(answer.applied, "the applied layer")?)
    }

    /// Stores what `right` has over `left` as a layer.
    ///
    /// # Errors
    /// Unimplemented for a media type nobody can write.
    pub async fn diff(
        &self,
        left: &[Mount],
        right: &[Mount],
        options: DiffOptions,
    ) -> Result<Descriptor> {
        let request = wire::DiffRequest {
            left: left.iter().cloned().map(Into::into).collect(),
            right: right.iter().cloned().map(Into::into).collect(),
            media_type: options.media_type,
            r#ref: options.reference,
            labels: label_map(&options.labels),
            source_date_epoch: None,
        };
        let answer = service!(self.client, DiffClient)
            .diff(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        descriptor(required(answer.diff, "the layer")?)
    }
}
