//! Layers to filesystems and back.

use std::collections::BTreeMap;

use gantry_api::containerd::services::diff::v1 as wire;
use gantry_api::containerd::services::diff::v1::diff_client::DiffClient;
use gantry_core::{Any, Descriptor, Labels};
use gantry_errdefs::Result;

use crate::client::{handle, service};
use crate::convert::{Mount, any_out, descriptor, descriptor_out, label_map, required, status};

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

/// How a layer is applied.
#[derive(Clone, Debug, Default)]
pub struct ApplyOptions {
    /// Have the files on disk when the call returns.
    pub sync: bool,
    /// What the daemon's stream processors are told of the layer, by their names: keys to decrypt
    /// it, say.
    pub payloads: BTreeMap<String, Any>,
}

impl Diff {
    /// Extracts the layer `layer` onto `mounts`; returns the descriptor of its plain tar.
    ///
    /// # Errors
    /// NotFound for a missing blob; Unimplemented for a media type nobody can read.
    pub async fn apply(&self, layer: &Descriptor, mounts: &[Mount]) -> Result<Descriptor> {
        self.apply_with(layer, mounts, ApplyOptions::default()).await
    }

    /// As [`Self::apply`], with options.
    ///
    /// # Errors
    /// As [`Self::apply`]; those of stream processors.
    pub async fn apply_with(
        &self,
        layer: &Descriptor,
        mounts: &[Mount],
        options: ApplyOptions,
    ) -> Result<Descriptor> {
        let payloads = options.payloads.into_iter();
        let request = wire::ApplyRequest {
            diff: Some(descriptor_out(layer)),
            mounts: mounts.iter().cloned().map(Into::into).collect(),
            sync_fs: options.sync,
            payloads: payloads.map(|(name, any)| (name, any_out(&any))).collect(),
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
